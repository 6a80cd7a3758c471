// satune diff: the first place where a computation and a reference part: a dump, or another run of satune.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "evaluation/backward_walk.h"
#include "evaluation/device_batch.h"
#include "evaluation/model_loader.h"
#include "model/files/sharing_plan.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/diff_input.h"
#include "trainer/commands/diff_table.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/number_checks.h"
#include "trainer/commands/standard_output.h"

namespace satune {
namespace {

constexpr int64_t kLongestRecord = 1024;  // of --data
constexpr int64_t kFewestTokens = 3;  // with fewer, no target sees two keys: gradients of q and k are zeros
// Defaults of --tolerance. Largest seen on the CPU: fp32 against transformers 1e-6, gradients 5e-6; bf16
// against fp32 0.033, gradients 0.09. Devices against each other: not measured.
constexpr double kForwardFp32 = 1e-4, kBackwardFp32 = 1e-3, kForwardBf16 = 0.05, kBackwardBf16 = 0.15;

struct DiffOptions {
  ModelOptions model;
  std::optional<std::string> reference;
  std::optional<std::string> with, with_precision, with_device, with_sharing, with_anchor;
  DiffInputOptions input;
  std::optional<double> rtol, atol, tolerance;
  bool gradients = false;

  bool two_runs() const { return with || with_precision || with_device || with_sharing || with_anchor; }
};

std::string describe(const ModelSource& source) {
  const SharingPlan& sharing = source.config.sharing;
  return fmt::format("{}, {}, {} on {}", source.directory.string(),
                     sharing.empty() ? "no sharing" : describe_sharing(sharing), precision_name(source.type),
                     source.device.str());
}

/// All that both sides are compared by, in the order of computing.
void walk(Llama& model, const Batch& batch, bool gradients, const Observer& observer) {
  const DeviceBatch there = to_device(batch, model.weights().device());
  model.logits(there, observer);
  if (gradients) walk_backward(model, there, observer);
}

void check_gradients(const Batch& batch) {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  if (tokens >= kFewestTokens && batch.target_count > 0) return;
  throw bad_input("--gradients", fmt::format("{} tokens, {} of them targets", tokens, batch.target_count),
                  fmt::format("at least {} tokens and a target", kFewestTokens));
}

int diff_with_dump(const DiffOptions& options) {
  if (options.input.prompt || options.input.tokens || options.input.data)
    throw bad_input("--reference " + *options.reference, "--prompt, --tokens or --data beside it",
                    "the dump's own tokens");
  const SafetensorsFile dump(*options.reference);
  const NamedTensors reference = dumped_tensors(dump);
  const ModelSource source = find_model_for(options.model);
  const Batch batch = dumped_tokens(dump);
  check_ids(batch, source, dump.path().string() + ": tensor tokens");
  const bool has_gradients = std::any_of(reference.begin(), reference.end(),
                                         [](const auto& entry) { return is_backward(entry.first); });
  if (options.gradients && !has_gradients)
    throw bad_input(*options.reference, "no gradients", "those that dump_reference.py --gradients writes");
  const bool has_forward = std::any_of(reference.begin(), reference.end(),
                                       [](const auto& entry) { return !is_backward(entry.first); });
  if ((options.rtol || options.atol) && !has_forward)
    throw bad_input(options.rtol ? "--rtol" : "--atol",
                    "no tensor of the forward pass in " + *options.reference,
                    "--tolerance, which judges the loss and gradients of a dump");
  // Rounded to 16 bits no element keeps to 1e-4: tensors are judged whole then, unless that is asked for.
  const bool exact = source.type == at::kFloat, by_element = exact || options.rtol || options.atol;
  if (options.tolerance && !has_gradients && by_element)
    throw bad_input("--tolerance", "no gradients in " + *options.reference,
                    "--rtol and --atol, which judge the forward pass of a dump");
  if (has_gradients) check_gradients(batch);
  Tolerance forward = {.relative = options.rtol.value_or(1e-4), .absolute = options.atol.value_or(1e-4)};
  if (!by_element) forward.relative_l2 = options.tolerance.value_or(kForwardBf16);
  DiffTable table(
      reference,
      {.reference_name = *options.reference, .value_label = "satune", .reference_label = "reference"},
      forward, {.relative_l2 = options.tolerance.value_or(exact ? kBackwardFp32 : kBackwardBf16)});
  Llama model = load_model(source);
  walk(model, batch, has_gradients,
       [&](std::string_view name, const at::Tensor& value) { table.see(name, value); });
  return table.finish();
}

/// The other side: this one, but for what --with... says.
ModelOptions other_side(const DiffOptions& options) {
  ModelOptions other = options.model;
  if (options.with) {  // another checkpoint has its own plan
    other.request.name_or_path = *options.with;
    other.request.sharing.clear();
    other.request.anchor.reset();
  }
  if (options.with_sharing) {
    other.request.sharing = *options.with_sharing;
    other.request.anchor.reset();
  }
  if (options.with_anchor) other.request.anchor = options.with_anchor;
  if (options.with_precision) other.request.precision = *options.with_precision;
  if (options.with_device) other.device = *options.with_device;
  return other;
}

/// Copies: a model's buffers may be used again, and its device is wanted for the other side.
NamedTensors record(const ModelSource& source, const Batch& batch, bool gradients) {
  NamedTensors tensors;
  Llama model = load_model(source);
  walk(model, batch, gradients, [&](std::string_view name, const at::Tensor& value) {
    tensors.emplace(name, value.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true));
  });
  return tensors;
}

/// Ids mean the same to both sides only where their tokenizers are one.
void check_same_tokenizer(const ModelSource& source, const ModelSource& other) {
  if (source.directory == other.directory) return;
  const auto fingerprint = [](const ModelSource& side) {
    return load_model_tokenizer(side.directory, side.config)->fingerprint();
  };
  if (fingerprint(source) != fingerprint(other))
    throw bad_input("--with " + other.directory.string(), "another tokenizer",
                    "that of " + source.directory.string() + ", or ids given by --tokens");
}

/// Errors about the other side name its options.
ModelSource find_other_side(const DiffOptions& options) {
  try {
    return find_model_for(other_side(options));
  } catch (const BadInput& error) {
    throw BadInput(fmt::format("the other side (--with...): {}", error.what()));
  }
}

int diff_two_runs(const DiffOptions& options) {
  if (options.rtol || options.atol)
    throw bad_input(options.rtol ? "--rtol" : "--atol", "no --reference",
                    "--tolerance, the relative L2 difference of a tensor");
  const ModelSource source = find_model_for(options.model), other = find_other_side(options);
  const int64_t longest =
      std::min({kLongestRecord, source.config.max_position_embeddings, other.config.max_position_embeddings});
  if (!options.input.tokens) check_same_tokenizer(source, other);
  const Batch batch = read_diff_input(options.input, source, longest);
  check_ids(batch, source, "tokens");
  check_ids(batch, other, "tokens");
  if (options.gradients) check_gradients(batch);
  fmt::print("this    {}\nother   {}\ntokens  {} in {}, {}\n", describe(source), describe(other),
             batch.tokens.size(), counted(batch.document_starts.size() - 1, "document"),
             counted(batch.target_count, "target"));
  const bool exact = source.type == at::kFloat && other.type == at::kFloat;
  const NamedTensors reference = record(other, batch, options.gradients);
  DiffTable table(reference,
                  {.reference_name = other.directory.string(),
                   .value_label = "this",
                   .reference_label = "other",
                   .name_missing = true},
                  {.relative_l2 = options.tolerance.value_or(exact ? kForwardFp32 : kForwardBf16)},
                  {.relative_l2 = options.tolerance.value_or(exact ? kBackwardFp32 : kBackwardBf16)});
  Llama model = load_model(source);
  walk(model, batch, options.gradients,
       [&](std::string_view name, const at::Tensor& value) { table.see(name, value); });
  return table.finish();
}

int run_diff(const DiffOptions& options) {
  if (options.reference.has_value() == options.two_runs())
    throw bad_input("satune diff",
                    options.two_runs() ? "--reference and --with..." : "nothing to compare with",
                    "--reference DUMP, or some of --with, --with-precision, --with-device, --with-sharing");
  const int code = options.two_runs() ? diff_two_runs(options) : diff_with_dump(options);
  finish_standard_output();
  return code;
}

void add_other_side(CLI::App& command, DiffOptions& options) {
  command.add_option("--with", options.with, "Another model: directory, or hub id in the local cache");
  command.add_option("--with-precision", options.with_precision, "The other side in fp32 | bf16 | auto");
  command.add_option("--with-device", options.with_device, "The other side on auto | cpu | cuda");
  command.add_option("--with-sharing", options.with_sharing, "The other side shares these layers, as 23-26");
  command.add_option("--with-anchor", options.with_anchor, "Its anchor: before (default) | first");
  DiffInputOptions& input = options.input;
  command.add_option("--prompt", input.prompt, "Compute on this text");
  command.add_option("--tokens", input.tokens, "Compute on these ids, as 1,403,407");
  CLI::Option* data = command.add_option(
      "--data", input.data,
      "Compute on records of this file (those of at most 1024 tokens), as they are trained");
  command
      .add_option("--template", input.template_name,
                  "Of --data: alpaca, alpaca_stanford, llama3 or a template file (default: what the model "
                  "was trained with, else alpaca)")
      ->needs(data);
  command.add_option("--max-records", input.max_records, "Of --data: the first N (default 4)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->needs(data);
}

}  // namespace

void add_diff_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<DiffOptions>();
  options->model.request.precision = "fp32";
  CLI::App* command = app.add_subcommand(
      "diff", "Find the first layer where two models, precisions, devices, or satune and a dump part");
  add_model_options(*command, options->model);
  command->get_option("--precision")->description("fp32 | bf16 | auto (default fp32)");
  command->add_option(
      "--reference", options->reference,
      "safetensors of `tokens` and the reference's tensors: embed, layers.{i}.q, .k (after RoPE), .v, "
      ".attention, .out, final_norm, logits, loss, gradient.{weight}; those that are there are compared");
  add_other_side(*command, *options);
  command->add_flag("--gradients", options->gradients,
                    "Also the loss and every weight's gradient (of a dump that has them they always are)");
  command
      ->add_option("--rtol", options->rtol,
                   "With --reference: relative tolerance of an element of the forward pass (default 1e-4)")
      ->check(not_negative());
  command
      ->add_option("--atol", options->atol,
                   "With --reference: absolute tolerance of an element of the forward pass (default 1e-4)")
      ->check(not_negative());
  command
      ->add_option("--tolerance", options->tolerance,
                   "Of a gradient, and of every tensor of two runs or in bf16: |difference| / |reference|, "
                   "L2 norms over "
                   "the tensor (default 1e-4 in fp32, 0.05 with bf16; gradients 1e-3 and 0.15)")
      ->check(not_negative());
  command->footer(
      "An element of a dump's forward pass parts when |satune - reference| > atol + rtol * |reference|, or "
      "one\n"
      "of the two is not finite. Two runs, gradients, and --precision bf16 without --rtol and --atol are "
      "judged\n"
      "tensor by tensor by --tolerance.\n"
      "Tensors are listed in the order of computing, gradients from the head down, so the first one that "
      "parts\n"
      "is where to look. Tensors that only one side has are named, not judged.\n"
      "Exit code 0: all within tolerance; 1: they part; 2: bad input; 3: no such device.\n"
      "Examples:\n"
      "  python tests/parity/dump_reference.py MODEL --prompt \"Once upon a time\" --gradients --output "
      "dump.safetensors\n"
      "  satune diff MODEL --reference dump.safetensors --rtol 1e-4 --atol 1e-5\n"
      "  satune diff MODEL --with-precision bf16 --prompt \"Once upon a time\" --gradients\n"
      "  satune diff MODEL --with-device cuda --data alpaca.json --gradients\n"
      "  satune diff DENSE --with SHARED --data alpaca.json\n"
      "  satune diff DENSE --with-sharing 23-26 --with-anchor first --data alpaca.json");
  command->callback([options, &exit_code] { exit_code = run_diff(*options); });
}

}  // namespace satune
