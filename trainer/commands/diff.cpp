// satune diff: the first place where satune's forward pass and a reference dump part.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <set>

#include "data/files/error.h"
#include "evaluation/model_loader.h"
#include "evaluation/tensor_difference.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"

namespace satune {
namespace {

struct DiffOptions {
  ModelOptions model;
  std::string reference;
  Tolerance tolerance;
};

at::Tensor as_tensor(const StoredTensor& stored, const std::string& where) {
  at::ScalarType type;
  if (stored.dtype == "F32") {
    type = at::kFloat;
  } else if (stored.dtype == "F64") {
    type = at::kDouble;
  } else if (stored.dtype == "BF16") {
    type = at::kBFloat16;
  } else if (stored.dtype == "F16") {
    type = at::kHalf;
  } else if (stored.dtype == "I64") {
    type = at::kLong;
  } else {
    throw bad_input(where, "dtype " + stored.dtype, "F64, F32, F16, BF16 or I64");
  }
  // from_blob wants a mutable pointer; the map is read-only and is only read.
  return at::from_blob(const_cast<std::byte*>(stored.bytes.data()), stored.shape, at::TensorOptions(type));
}

DeviceBatch batch_of(const SafetensorsFile& dump, const ModelSource& source) {
  const std::string where = dump.path().string() + ": tensor tokens";
  const StoredTensor* stored = dump.find("tokens");
  if (stored == nullptr) throw bad_input(where, "nothing", "int64 ids [N], as dump_reference.py writes them");
  if (stored->dtype != "I64" || stored->shape.size() != 1 || stored->shape[0] < 1)
    throw bad_input(where, fmt::format("{} [{}]", stored->dtype, fmt::join(stored->shape, ", ")), "I64 [N]");
  DeviceBatch batch;
  batch.tokens_N = as_tensor(*stored, where);
  const int64_t lowest = batch.tokens_N.min().item<int64_t>(), highest = batch.tokens_N.max().item<int64_t>();
  if (lowest < 0 || highest >= source.config.vocab_size)
    throw bad_input(where, fmt::format("id {}", lowest < 0 ? lowest : highest),
                    fmt::format("ids below the model's vocab_size {}", source.config.vocab_size));
  const int64_t N = batch.tokens_N.numel();
  batch.tokens_N = batch.tokens_N.to(source.device);
  batch.positions_N = at::arange(N, at::TensorOptions(at::kLong).device(source.device));
  batch.document_starts = {0, N};
  return batch;
}

/// Compares what the forward pass shows with the dump, prints a line each, and keeps the first that parts.
class Comparison {
 public:
  Comparison(const SafetensorsFile& dump, Tolerance tolerance) : dump_(dump), tolerance_(tolerance) {
    fmt::print("{:<24} {:>18} {:>12} {:>12}\n", "tensor", "shape", "max abs", "relative L2");
  }

  void see(std::string_view name, const at::Tensor& value) {
    const StoredTensor* stored = dump_.find(name);
    if (stored == nullptr) return;
    const std::string where = fmt::format("{}: tensor {}", dump_.path().string(), name);
    if (value.sizes() != at::IntArrayRef(stored->shape))
      throw bad_input(where, fmt::format("shape [{}]", fmt::join(stored->shape, ", ")),
                      fmt::format("[{}]", fmt::join(value.sizes(), ", ")));
    const TensorDifference difference = compare_tensors(value, as_tensor(*stored, where), tolerance_);
    fmt::print("{:<24} {:>18} {:>12.3e} {:>12.3e}{}\n", name,
               fmt::format("[{}]", fmt::join(stored->shape, ", ")), difference.max_absolute,
               difference.relative_l2, difference.first ? "  parts" : "");
    compared_.emplace(name);
    if (difference.first && first_.empty()) first_ = describe(name, difference);
  }

  /// Prints the verdict; 0 where all agree.
  int finish() const {
    for (const auto& [name, stored] : dump_.tensors())
      if (name != "tokens" && !compared_.contains(name))
        fmt::print("{:<24} not compared: this model has none\n", name);
    if (compared_.empty())
      throw bad_input(dump_.path().string(), "no tensor of this model", "embed, layers.0.q, ..., logits");
    if (first_.empty()) {
      fmt::print("{} tensors agree (rtol {}, atol {})\n", compared_.size(), tolerance_.relative,
                 tolerance_.absolute);
      return kExitOk;
    }
    fmt::print("{}\n", first_);
    return kExitFailure;
  }

 private:
  std::string describe(std::string_view name, const TensorDifference& difference) const {
    const DifferingElement& element = *difference.first;
    return fmt::format(
        "first to part: {}[{}]: satune {:.9g}, reference {:.9g}; {} of {} elements beyond rtol {}, atol {}",
        name, fmt::join(element.index, ", "), element.value, element.reference, difference.beyond_tolerance,
        difference.elements, tolerance_.relative, tolerance_.absolute);
  }

  const SafetensorsFile& dump_;
  Tolerance tolerance_;
  std::set<std::string, std::less<>> compared_;
  std::string first_;
};

int run_diff(const DiffOptions& options) {
  const SafetensorsFile dump(options.reference);
  const ModelSource source = find_model_for(options.model);
  const DeviceBatch batch = batch_of(dump, source);
  Llama model = load_model(source);
  Comparison comparison(dump, options.tolerance);
  model.logits(batch, [&](std::string_view name, const at::Tensor& value) { comparison.see(name, value); });
  return comparison.finish();
}

}  // namespace

void add_diff_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<DiffOptions>();
  options->model.request.precision = "fp32";
  CLI::App* command =
      app.add_subcommand("diff", "Find the first layer where satune and a reference dump part");
  add_model_options(*command, options->model);
  command->get_option("--precision")->description("fp32 | bf16 | auto (default fp32, as the dump)");
  command
      ->add_option(
          "--reference", options->reference,
          "safetensors of `tokens` and the reference's tensors: embed, layers.{i}.q, .k (after RoPE), .v, "
          ".attention, .out, final_norm, logits; those that are there are compared")
      ->required();
  const auto tolerance = CLI::NonNegativeNumber;
  command
      ->add_option("--rtol", options->tolerance.relative, "Relative tolerance of an element (default 1e-4)")
      ->check(tolerance);
  command
      ->add_option("--atol", options->tolerance.absolute, "Absolute tolerance of an element (default 1e-4)")
      ->check(tolerance);
  command->footer(
      "An element parts when |satune - reference| > atol + rtol * |reference|, or one of the two is not "
      "finite.\n"
      "Exit code 0: all agree; 1: they part. Tensors are listed in forward order, so the first one that "
      "parts is\n"
      "where to look.\n"
      "Examples:\n"
      "  python tests/parity/dump_reference.py MODEL --prompt \"Once upon a time\" --output "
      "dump.safetensors\n"
      "  satune diff MODEL --reference dump.safetensors --rtol 1e-4 --atol 1e-5");
  command->callback([options, &exit_code] { exit_code = run_diff(*options); });
}

}  // namespace satune
