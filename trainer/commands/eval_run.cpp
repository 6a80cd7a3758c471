#include "trainer/commands/eval_run.h"

#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/fingerprint.h"
#include "evaluation/generation.h"
#include "model/decode.h"
#include "model/files/model_config.h"
#include "trainer/commands/eval_fingerprints.h"
#include "trainer/device.h"
#include "trainer/item_progress.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kCpuTokens = 4096, kCardTokens = 32768, kFewestTokens = 256;

/// Of the device, once the weights are there.
int64_t memory_left(const ModelSource& source, int64_t local_ranks) {
  const int64_t weights =
      TensorTable(source.config).parameter_count() * static_cast<int64_t>(c10::elementSize(source.type));
  const int64_t ranks = source.device.is_cpu() ? local_ranks : 1;
  return std::max<int64_t>(available_memory(source.device) / ranks - weights, 0);
}

struct TaskRun {
  Json metrics;
  int64_t tokens = 0;  ///< of the items computed here
};

/// This rank's items of a task, those in the store and the others through the model, and on rank 0 those of
/// all ranks.
TaskRun run_task(Llama& model, const NamedTask& named, const std::string& run, ItemStore& store,
                 EvalRanks& ranks) {
  const std::string fingerprint = named.task->fingerprint();
  const std::map<int64_t, ItemResult> found = store.found(run, *named.task);
  std::map<int64_t, ItemResult> own;
  std::vector<int64_t> missing;
  for (int64_t item = 0; item < named.task->items(); ++item) {
    if (!ranks.owns(item)) continue;
    const auto it = found.find(item);
    if (it == found.end()) {
      missing.push_back(item);
    } else {
      own[item] = it->second;
    }
  }
  const auto before = static_cast<int64_t>(own.size());
  if (before > 0) spdlog::info("{}: {} of {} items are there already", run, before, before + missing.size());
  TaskRun out;
  // Rank 0 shows what all have done; each of the others says now and then how far it is.
  const auto there = static_cast<int64_t>(found.size());
  ItemProgress progress(run, named.task->items(), there, ranks.is_leader());
  progress.with_others([&] { return ranks.progress(run); }, [&](ItemCount mine) { ranks.tell(run, mine); });
  named.task->run(model, missing, [&](ItemResult result) {
    store.append(run, fingerprint, result);
    progress.item(result.tokens);
    const int64_t item = result.item;
    own[item] = std::move(result);
  });
  std::vector<Json> results;
  for (auto& [item, result] : ranks.gather(run, std::move(own), [&] { progress.look(); })) {
    if (!found.contains(item)) out.tokens += result.tokens;
    // One file holds all in the end. The others' may have been read while they were being written.
    if (ranks.is_leader() && !store.holds(run, fingerprint, item)) store.append(run, fingerprint, result);
    results.push_back(std::move(result.result));
  }
  progress.all_done();
  if (ranks.is_leader()) out.metrics = named.task->metrics(results);
  return out;
}

/// `own_peak`: the memory that this plan needed can be told from what was there before it.
Json run_plan(Llama& model, const ModelSource& source, const EvalTasks& tasks, const Json& fingerprints,
              ItemStore& store, EvalRanks& ranks, bool own_peak) {
  const SharingPlan& plan = model.config().sharing;
  Json results = Json::object();
  int64_t tokens = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const NamedTask& task : tasks.tasks) {
    const std::string run =
        plan.empty() ? task.key
                     : fmt::format("{} @ {} {}", task.key, plan.layers_text(), to_string(plan.rule()));
    TaskRun done = run_task(model, task, run, store, ranks);
    results[task.key] = std::move(done.metrics);
    tokens += done.tokens;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Json report;
  report["tasks"] = std::move(results);
  report["fingerprints"] = fingerprints;
  report["seconds"] = seconds;
  report["tokens_per_s"] = static_cast<double>(tokens) / seconds;
  if (own_peak) report["peak_memory_bytes"] = peak_memory_bytes(source.device);
  report["parameters"] = model.table().parameter_count();
  report["kv_cache_bytes_per_token"] =
      kv_cache_bytes_per_token(model.config(), static_cast<int64_t>(c10::elementSize(source.type)));
  report["precision"] = precision_name(source.type);
  report["sharing"] = plan.layers_text();
  report["anchor"] = plan.empty() ? "" : to_string(plan.rule());
  return report;
}

}  // namespace

int64_t automatic_cache_tokens(const ModelSource& source, int64_t local_ranks) {
  const int64_t bytes =
      kv_cache_bytes_per_token(source.config, static_cast<int64_t>(c10::elementSize(source.type)));
  return memory_left(source, local_ranks) / 4 / bytes;
}

int64_t automatic_batch_tokens(const ModelSource& source, int64_t local_ranks) {
  const ModelConfig& config = source.config;
  // A layer's inputs, projections and outputs, and what two layers of a span keep for each other.
  const int64_t elements = 8 * config.hidden_size + 3 * config.intermediate_size + 2 * config.query_size() +
                           4 * config.key_value_size();
  const int64_t bytes = elements * static_cast<int64_t>(c10::elementSize(source.type));
  return std::clamp(memory_left(source, local_ranks) / 4 / bytes, kFewestTokens,
                    source.device.is_cpu() ? kCpuTokens : kCardTokens);
}

std::string model_fingerprint(const ModelSource& source, const Tokenizer& tokenizer) {
  Sha256 sha;
  sha.update_field(read_text_file(source.directory / "config.json"));
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(source.directory))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    sha.update_field(file.filename().string());
    sha.update_field(static_cast<uint64_t>(fs::file_size(file)));
    sha.update_field(static_cast<uint64_t>(fs::last_write_time(file).time_since_epoch().count()));
  }
  sha.update_field(tokenizer.fingerprint());
  sha.update_field(fmt::format(
      "stop {}", fmt::join(stop_token_ids(source.directory, source.config, tokenizer, std::nullopt), ",")));
  sha.update_field(fmt::format("bos {} {} {} {}", tokenizer.bos_id().value_or(-1), tokenizer.adds_bos(),
                               precision_name(source.type), source.device.is_cpu() ? "cpu" : "card"));
  return sha.hex();
}

Json common_ground(const ModelSource& source, const EvalTasks& tasks, const std::vector<SharingPlan>& plans) {
  Json ground = {{"model", model_config_json(source.config)},
                 {"weights", "fingerprint " + sampled_fingerprint(Checkpoint(source.directory))},
                 {"tokenizer", tasks.tokenizer->fingerprint()},
                 {"precision", precision_name(source.type)},
                 {"device", source.device.is_cpu() ? "cpu" : "cuda"},
                 {"tasks", Json::object()},
                 {"sweep", Json::array()}};
  for (const NamedTask& task : tasks.tasks) ground["tasks"][task.key] = task.task->fingerprint();
  for (const SharingPlan& plan : plans)
    ground["sweep"].push_back(fmt::format("{} {}", plan.layers_text(), to_string(plan.rule())));
  return ground;
}

std::vector<SharingPlan> parse_sweep(const EvalOptions& options, const ModelSource& source) {
  if (!options.sweep) return {};
  if (!source.config.sharing.empty())
    throw bad_input("--sweep", "a model that shares attention already", "a dense one, and no --sharing");
  const int layers = static_cast<int>(source.config.num_hidden_layers);
  const AnchorRule rule = parse_anchor_rule(options.sweep_anchor.value_or("before"));
  std::vector<SharingPlan> plans;
  for (size_t begin = 0; begin <= options.sweep->size();) {
    const size_t end = std::min(options.sweep->find(';', begin), options.sweep->size());
    const std::string text = options.sweep->substr(begin, end - begin);
    if (text.find_first_not_of(" \t") == std::string::npos)
      throw bad_input(fmt::format("--sweep \"{}\"", *options.sweep),
                      fmt::format("an empty plan, number {}", plans.size() + 1),
                      "one such as 23-26, or none, on either side of each semicolon");
    SharingPlan plan =
        text == "none" ? SharingPlan(layers) : SharingPlan::parse(text, rule, layers, "--sweep");
    if (std::find(plans.begin(), plans.end(), plan) != plans.end())
      throw bad_input("--sweep", fmt::format("{} twice", text), "each plan once");
    plans.push_back(std::move(plan));
    begin = end + 1;
  }
  return plans;
}

std::vector<Json> run_eval_tasks(const ModelSource& source, const EvalTasks& tasks,
                                 const std::vector<SharingPlan>& plans, ItemStore& store, EvalRanks& ranks) {
  Llama model = load_model(source);
  const Json fingerprints = ranks.is_leader() ? eval_fingerprints(tasks) : Json::object();
  if (plans.empty()) return {run_plan(model, source, tasks, fingerprints, store, ranks, true)};
  std::vector<Json> reports;
  for (const SharingPlan& plan : plans) {
    const bool own_peak = begin_peak_memory(source.device);
    if (plan.empty()) {
      reports.push_back(run_plan(model, source, tasks, fingerprints, store, ranks, own_peak));
    } else {
      Llama shared = model.with_sharing(plan);
      reports.push_back(run_plan(shared, source, tasks, fingerprints, store, ranks, own_peak));
    }
  }
  return reports;
}

}  // namespace satune
