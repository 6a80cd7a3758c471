// What the parity tests ask of the network core and the optimizer; the contract is in test_train_parity.py.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <map>

#include "data/files/error.h"
#include "model/files/hf_directory.h"
#include "model/llama.h"
#include "tests/model/targets.h"
#include "trainer/adamw.h"
#include "trainer/gradient_norm.h"
#include "trainer/update_decision.h"

namespace satune {
namespace {

struct Options {
  std::string model, input, output, precision = "fp32", sharing, anchor = "before", recording = "keep";
  double learning_rate = 1e-3, weight_decay = 0, max_grad_norm = 0;
  int64_t steps = 1;
};

/// A named tensor of a safetensors file, in memory of its own.
at::Tensor read(const SafetensorsFile& file, const std::string& name) {
  const StoredTensor* stored = file.find(name);
  if (stored == nullptr) throw bad_input(file.path().string() + ": " + name, "nothing", "a tensor");
  const std::map<std::string, at::ScalarType> types = {
      {"I64", at::kLong}, {"F32", at::kFloat}, {"F64", at::kDouble}};
  return at::from_blob(const_cast<std::byte*>(stored->bytes.data()), stored->shape, types.at(stored->dtype))
      .clone();
}

void write(const std::string& path, const std::map<std::string, at::Tensor>& tensors) {
  const std::map<at::ScalarType, std::string> types = {{at::kFloat, "F32"}, {at::kDouble, "F64"}};
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, types.at(tensor.scalar_type()), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs);
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor packed = tensor.contiguous();
    writer.write({static_cast<const std::byte*>(packed.const_data_ptr()), packed.nbytes()});
  }
  writer.commit();
}

Llama load(const Options& options) {
  ModelConfig config = read_model_config(options.model);
  const bool dense_source = !options.sharing.empty();
  if (dense_source) {
    config.sharing = SharingPlan::parse(options.sharing, parse_anchor_rule(options.anchor),
                                        static_cast<int>(config.num_hidden_layers));
  }
  Llama model(config, {}, options.precision == "fp64" ? at::kDouble : at::kFloat, at::kCPU);
  load_weights(model.weights(), Checkpoint(options.model), dense_source);
  return model;
}

DeviceBatch read_batch(const SafetensorsFile& file, const std::string& suffix) {
  DeviceBatch batch;
  batch.tokens_N = read(file, "tokens" + suffix);
  batch.targets = testing::targets_of(read(file, "targets" + suffix));
  batch.positions_N = read(file, "positions" + suffix);
  const at::Tensor starts = read(file, "document_starts" + suffix);
  batch.document_starts.assign(starts.const_data_ptr<int64_t>(),
                               starts.const_data_ptr<int64_t>() + starts.numel());
  return batch;
}

std::vector<Recording> recording_of(const Options& options, const Llama& model) {
  const std::map<std::string, Recording> names = {
      {"keep", Recording::kKeep}, {"selective", Recording::kSelective}, {"recompute", Recording::kRecompute}};
  return std::vector<Recording>(model.config().num_hidden_layers, names.at(options.recording));
}

/// Gradients of the mean loss over the batch's targets; returns that loss (0 without targets).
double mean_loss_backward(Llama& model, const DeviceBatch& batch, const Options& options,
                          ParameterBuffers& gradients) {
  SegmentHooks none;
  const double count = std::max<double>(1, static_cast<double>(batch.targets.count()));
  const LossSums sums =
      model.forward_backward(batch, 1 / count, gradients, false, recording_of(options, model), none);
  return sums.loss.item<double>() / count;
}

void put_tensors(const Llama& model, const ParameterBuffers& buffers, const std::string& prefix,
                 std::map<std::string, at::Tensor>& out) {
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    out[prefix + model.table().tensors()[i].name] = buffers.tensor(i);
  }
}

void run_grads(const Options& options) {
  Llama model = load(options);
  const DeviceBatch batch = read_batch(SafetensorsFile(options.input), "");
  ParameterBuffers gradients = model.make_gradients(model.weights().type());
  std::map<std::string, at::Tensor> out;
  out["logits"] = model.logits(batch);
  out["loss"] = at::full({}, mean_loss_backward(model, batch, options, gradients), at::kDouble);
  put_tensors(model, gradients, "grad.", out);
  write(options.output, out);
}

AdamWOptions optimizer_options(const Options& options) {
  AdamWOptions adamw;
  adamw.weight_decay = options.weight_decay;
  return adamw;
}

void run_adamw(const Options& options) {
  Llama model = load(options);
  const SafetensorsFile given(options.input);
  AdamW optimizer(model.weights().trained, optimizer_options(options));
  ParameterBuffers gradients = model.make_gradients(model.weights().type());
  const auto tensors = model.table().tensors();
  for (int64_t step = 0; given.find(fmt::format("{}.{}", step, tensors[0].name)) != nullptr; ++step) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      gradients.tensor(i).copy_(read(given, fmt::format("{}.{}", step, tensors[i].name)));
    }
    optimizer.update(gradients, 1, options.learning_rate, step + 1);
  }
  std::map<std::string, at::Tensor> out;
  put_tensors(model, model.weights().trained, "", out);
  write(options.output, out);
}

void run_trajectory(const Options& options) {
  Llama model = load(options);
  const SafetensorsFile batches(options.input);
  AdamW optimizer(model.weights().trained, optimizer_options(options));
  ParameterBuffers gradients = model.make_gradients(model.weights().type());
  std::vector<double> losses, norms;
  for (int64_t step = 0; step < options.steps; ++step) {
    const DeviceBatch batch = read_batch(batches, fmt::format(".{}", step));
    losses.push_back(mean_loss_backward(model, batch, options, gradients));
    norms.push_back(std::sqrt(gradient_sum_of_squares(gradients)));
    optimizer.update(gradients, clip_factor(norms.back(), options.max_grad_norm), options.learning_rate,
                     step + 1);
  }
  std::map<std::string, at::Tensor> out;
  out["losses"] = at::tensor(losses, at::kDouble);
  out["grad_norms"] = at::tensor(norms, at::kDouble);
  put_tensors(model, model.weights().trained, "", out);
  write(options.output, out);
}

void add(CLI::App& app, const std::string& name, Options& options, void (*run)(const Options&)) {
  CLI::App* command = app.add_subcommand(name);
  command->add_option("model", options.model)->required();
  command->add_option("input", options.input)->required();
  command->add_option("output", options.output)->required();
  command->add_option("--precision", options.precision)->check(CLI::IsMember({"fp32", "fp64"}));
  command->add_option("--sharing", options.sharing);
  command->add_option("--anchor", options.anchor);
  command->add_option("--recording", options.recording)
      ->check(CLI::IsMember({"keep", "selective", "recompute"}));
  command->add_option("--lr", options.learning_rate);
  command->add_option("--weight-decay", options.weight_decay);
  command->add_option("--max-grad-norm", options.max_grad_norm);
  command->add_option("--steps", options.steps);
  command->callback([&options, run] { run(options); });
}

int run_tool(int argc, char** argv) {
  CLI::App app("The network core and the optimizer, for the parity tests");
  Options options;
  app.require_subcommand(1);
  add(app, "grads", options, run_grads);
  add(app, "adamw", options, run_adamw);
  add(app, "trajectory", options, run_trajectory);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return kExitFailure;
  }
  return kExitOk;
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  return satune::run_tool(argc, argv);
}
