// satune plan: what a run needs on each of its ranks and what they send, before anything is loaded.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <memory>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/flops.h"
#include "trainer/commands/commands.h"
#include "trainer/device.h"
#include "trainer/device_rates.h"
#include "trainer/model_plan.h"
#include "trainer/progress.h"
#include "trainer/traffic_plan.h"

namespace satune {
namespace {

constexpr int64_t kMaxWorld = 16384;
constexpr size_t kStages = 4;

struct PlanOptions {
  std::string config, device;
  std::vector<std::string> overrides;
  int64_t world_size = 1;
  std::optional<int64_t> stage;
  std::optional<double> flops, bandwidth;
  bool json = false;
};

/// One column of the table.
struct StagePlan {
  MemoryPlan memory;
  TrafficPlan traffic;
  int64_t usual_bytes = 0;
};

/// Everything that is printed.
struct Report {
  Settings settings;
  ModelPlan model;
  DeviceRates device;
  int64_t available = 0, tokens = 0, threads = 1;
  std::array<StagePlan, kStages> stages;
  StageChoice choice;
  double flops_per_token = 0;
  Rates rates;  ///< 0 where unknown
  std::optional<StepEstimate> estimate;

  PlannedRun run() const {
    return {settings, model.config, model.table, model.trained_mask, tokens, device.on_card, threads};
  }
  const StagePlan& chosen() const { return stages[static_cast<size_t>(choice.stage)]; }
};

std::string bytes(int64_t value) {
  return format_bytes(static_cast<double>(value));
}

/// "47.5 GFLOP".
std::string quantity(double value, std::string_view unit) {
  std::string text = format_count(value);
  const bool prefixed = std::isalpha(static_cast<unsigned char>(text.back())) != 0;
  return text.insert(text.size() - (prefixed ? 1 : 0), " ").append(unit);
}

DeviceRates device_of(const PlanOptions& options, const Settings& settings) {
  if (!options.device.empty()) return parse_device_rates(options.device);
  const at::Device here = choose_device(settings.device);
  if (here.is_cpu()) return parse_device_rates("cpu");
  DeviceRates card;
  card.name = "this machine's card";
  card.memory_bytes = available_memory(here);
  return card;
}

Report make_report(const PlanOptions& options) {
  Report report;
  report.settings = read_settings(options.config, options.overrides);
  if (options.stage) report.settings.zero_stage = options.stage;
  int64_t shard_group = 1;
  naming_source(report.settings, [&] {
    report.model = plan_model_or_architecture(report.settings);
    shard_group = shard_group_size(report.settings, options.world_size);
  });
  report.device = device_of(options, report.settings);
  report.tokens = report.settings.per_device_train_batch_size * report.settings.max_length;
  const int64_t world = options.world_size;
  if (report.device.on_card) {
    report.available = report.device.memory_bytes;
  } else {  // all ranks on this machine
    report.available = available_memory(at::kCPU, world);
    report.threads = operator_threads_unbound(report.settings, world);
  }
  const PlannedRun run = report.run();
  for (size_t i = 0; i < kStages; ++i) {
    const Sharded sharded{world, static_cast<int64_t>(i), shard_group};
    report.stages[i] = {plan_memory(run, sharded, report.available), plan_traffic(run, sharded),
                        usual_bytes_per_step(run, sharded)};
  }
  report.choice = choose_zero_stage(run, world, report.available);
  report.flops_per_token =
      training_flops_per_token(report.model.config, report.model.table, report.model.trained_mask,
                               static_cast<double>(report.settings.max_length));
  report.rates.flops =
      options.flops.value_or(kPredictedUtilisation * report.device.flops(report.settings.precision));
  report.rates.bytes_per_second = options.bandwidth.value_or(report.device.link(world));
  if (report.rates.flops > 0 && (world == 1 || report.rates.bytes_per_second > 0)) {
    if (world == 1) report.rates.bytes_per_second = 1;  // nothing is sent
    report.estimate = estimate_step(run, {world, report.choice.stage, shard_group},
                                    report.chosen().memory.recording, report.rates);
  }
  return report;
}

std::string row(std::string_view name, const std::array<std::string, kStages>& cells) {
  std::string text = fmt::format("{:<22}", name);
  for (const std::string& cell : cells) text += fmt::format("{:>14}", cell);
  return text + "\n";
}

template <typename F>
std::string row_of(std::string_view name, const Report& report, F&& cell) {
  std::array<std::string, kStages> cells;
  for (size_t i = 0; i < kStages; ++i) cells[i] = cell(report.stages[i], i);
  return row(name, cells);
}

std::string memory_table(const Report& report) {
  std::string text = row_of("bytes a rank", report, [&](const StagePlan&, size_t i) {
    return fmt::format("{}stage {}", static_cast<int64_t>(i) == report.choice.stage ? "* " : "", i);
  });
  const auto components = report.stages[0].memory.items();
  for (size_t item = 0; item < components.size(); ++item) {
    const auto cell = [&](const StagePlan& plan, size_t) { return plan.memory.items()[item].second; };
    if (std::all_of(report.stages.begin(), report.stages.end(),
                    [&](const StagePlan& plan) { return cell(plan, 0) == 0; }))
      continue;
    text += row_of(components[item].first, report,
                   [&](const StagePlan& plan, size_t i) { return bytes(cell(plan, i)); });
  }
  text += row_of("total", report, [](const StagePlan& plan, size_t) { return bytes(plan.memory.total()); });
  text += row_of(fmt::format("of {}", bytes(report.available)), report, [&](const StagePlan& plan, size_t) {
    return plan.memory.total() <= report.available ? "fits" : "too large";
  });
  if (report.stages[0].memory.host > 0) {
    text += row_of("in host memory", report,
                   [](const StagePlan& plan, size_t) { return bytes(plan.memory.host); });
  }
  return text;
}

std::string traffic_table(const Report& report) {
  std::string text = "\n";
  const auto add = [&](std::string_view name, auto value) {
    text += row_of(name, report, [&](const StagePlan& plan, size_t) { return bytes(value(plan)); });
  };
  add("sent a step", [](const StagePlan& plan) { return plan.traffic.per_step(); });
  add("  gradients reduced",
      [](const StagePlan& plan) { return plan.traffic.micro_steps * plan.traffic.reduced; });
  add("  gathered", [](const StagePlan& plan) { return plan.traffic.gathered_per_step(); });
  if (report.chosen().traffic.replicated > 0)
    add("  between replicas", [](const StagePlan& plan) { return plan.traffic.replicated; });
  add("usual count", [](const StagePlan& plan) { return plan.usual_bytes; });
  return text;
}

std::string recording_text(const std::vector<Recording>& recording) {
  const auto count = [&](Recording kind) { return std::count(recording.begin(), recording.end(), kind); };
  return fmt::format("{} layers keep everything, {} compute norms and SwiGLU again, {} everything",
                     count(Recording::kKeep), count(Recording::kSelective), count(Recording::kRecompute));
}

std::string estimate_lines(const Report& report, int64_t world) {
  std::string text = fmt::format("\ncomputation    {} a token of documents of {} tokens\n",
                                 quantity(report.flops_per_token, "FLOP"), report.settings.max_length);
  if (!report.estimate) {
    return text +
           "no prediction  give --flops (and --bandwidth for several ranks): rates of this device are not "
           "known\n";
  }
  const StepEstimate& estimate = *report.estimate;
  const double tokens =
      static_cast<double>(report.tokens * report.settings.gradient_accumulation_steps * world);
  text += fmt::format("prediction     {:.3g} s a step, {} tokens/s, at {} a rank", estimate.step,
                      format_count(tokens / estimate.step), quantity(report.rates.flops, "FLOP/s"));
  if (world > 1) {
    text += fmt::format(" and {} sent;\n               {:.3g} s of sending a step, {:.0f} % of it hidden",
                        quantity(report.rates.bytes_per_second, "B/s"), estimate.sending,
                        100 * estimate.hidden_fraction());
  }
  return text + ". Update, data and saving are not in it\n";
}

std::string report_text(const Report& report, const PlanOptions& options) {
  const Settings& settings = report.settings;
  const ModelConfig& config = report.model.config;
  std::string text = fmt::format("model          {}: {} layers, {} parameters, {} trained\n",
                                 report.model.directory.string(), config.num_hidden_layers,
                                 format_count(static_cast<double>(report.model.table.parameter_count())),
                                 format_count(static_cast<double>(report.model.trained_parameters())));
  text += fmt::format("run            {} x {}, each {} x {} tokens, {} accumulated\n               {}\n",
                      options.world_size, report.device.name, settings.per_device_train_batch_size,
                      settings.max_length, settings.gradient_accumulation_steps,
                      recording_text(report.chosen().memory.recording));
  text += fmt::format("               {}\n\n", report.choice.reason);
  text += memory_table(report);
  if (options.world_size > 1) text += traffic_table(report);
  return text + estimate_lines(report, options.world_size);
}

Json report_json(const Report& report, const PlanOptions& options) {
  Json stages = Json::array();
  for (const StagePlan& plan : report.stages) {
    Json memory;
    for (const auto& [name, value] : plan.memory.items()) memory[name] = value;
    const TrafficPlan& sent = plan.traffic;
    stages.push_back({{"memory_bytes", memory},
                      {"total_bytes", plan.memory.total()},
                      {"host_bytes", plan.memory.host},
                      {"fits", plan.memory.total() <= report.available},
                      {"sent_bytes",
                       {{"reduced_per_micro_step", sent.reduced},
                        {"gathered_first_micro_step", sent.gathered_first},
                        {"gathered_later_micro_step", sent.gathered_later},
                        {"gathered_at_update", sent.gathered_at_update},
                        {"between_replicas", sent.replicated},
                        {"exchanged_per_step", sent.exchanged},
                        {"per_step", sent.per_step()},
                        {"usual_per_step", plan.usual_bytes}}}});
  }
  Json json = {{"parameters", report.model.table.parameter_count()},
               {"trained_parameters", report.model.trained_parameters()},
               {"world_size", options.world_size},
               {"tokens_per_micro_step", report.tokens},
               {"gradient_accumulation_steps", report.settings.gradient_accumulation_steps},
               {"device", {{"name", report.device.name}, {"available_bytes", report.available}}},
               {"zero_stage", report.choice.stage},
               {"reason", report.choice.reason},
               {"stages", std::move(stages)},
               {"flops_per_token", report.flops_per_token},
               {"prediction", nullptr}};
  if (report.estimate) {
    const StepEstimate& estimate = *report.estimate;
    json["prediction"] = {
        {"flops_per_second", report.rates.flops}, {"forward_seconds", estimate.forward},
        {"backward_seconds", estimate.backward},  {"sending_seconds", estimate.sending},
        {"exposed_seconds", estimate.exposed},    {"hidden_fraction", estimate.hidden_fraction()},
        {"step_seconds", estimate.step}};
    if (options.world_size > 1) json["prediction"]["bytes_per_second"] = report.rates.bytes_per_second;
  }
  return json;
}

void add_plan_options(CLI::App& command, PlanOptions& options) {
  command.add_option("config", options.config, "JSON file of settings, as `satune train` takes it")
      ->required();
  command.add_option(
      "overrides", options.overrides,
      "key=value, each replacing a setting; model_name_or_path may be an architecture's JSON file");
  command.add_option("--world-size", options.world_size, "Ranks (default 1)")
      ->check(CLI::Range(int64_t{1}, kMaxWorld));
  command.add_option(
      "--device", options.device,
      "h200 | h100 | a100-80 | a100-40 | cpu | memory of a card such as 80GiB (default: what this "
      "machine has)");
  command.add_option("--stage", options.stage, "ZeRO stage, instead of the setting zero_stage")
      ->check(CLI::Range(int64_t{0}, int64_t{kStages - 1}));
  command
      .add_option("--flops", options.flops,
                  "FLOP/s that a rank achieves (default: half the peak of the named device)")
      ->check(CLI::PositiveNumber);
  command
      .add_option(
          "--bandwidth", options.bandwidth,
          "Bytes/s that a rank sends (default: the named device's link inside a machine, or between them)")
      ->check(CLI::PositiveNumber);
  command.add_flag("--json", options.json, "JSON instead of a table");
}

}  // namespace

void add_plan_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      app.add_subcommand("plan", "Memory, traffic and speed of a run on every ZeRO stage, predicted");
  add_plan_options(*command, *options);
  command->footer(
      "Reads the config and the model's headers: no weights, no data; rows are taken as full (max_length).\n"
      "Times and rates are predictions from peak rates, not measurements.\n"
      "Examples:\n"
      "  satune plan configs/llama3-8b-sa.json --world-size 8 --device h200\n"
      "  satune plan configs/llama3-8b-sa.json model_name_or_path=configs/arch-llama3-70b.json --world-size "
      "1024 "
      "--device h100 --json");
  command->callback([options, &exit_code] {
    const Report report = make_report(*options);
    fmt::print("{}",
               options->json ? write_json(report_json(report, *options)) : report_text(report, *options));
    exit_code = kExitOk;
  });
}

}  // namespace satune
