#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "data/files/counted.h"
#include "trainer/commands/plan_report.h"
#include "trainer/progress.h"

namespace satune {
namespace {

std::string bytes(int64_t value) {
  return format_bytes(static_cast<double>(value));
}

/// "47.5 GFLOP".
std::string quantity(double value, std::string_view unit) {
  std::string text = format_count(value);
  const bool prefixed = std::isalpha(static_cast<unsigned char>(text.back())) != 0;
  return text.insert(text.size() - (prefixed ? 1 : 0), " ").append(unit);
}

/// One line; alone a process has no stages to choose from.
template <typename F>
std::string row_of(std::string_view name, const Report& report, F&& cell) {
  std::string text = fmt::format("{:<22}", name);
  const size_t columns = report.world_size == 1 ? 1 : kStages;
  for (size_t i = 0; i < columns; ++i) text += fmt::format("{:>14}", cell(report.stages[i], i));
  return text + "\n";
}

std::string memory_table(const Report& report) {
  const bool alone = report.world_size == 1;
  std::string text = row_of(alone ? "bytes" : "bytes a rank", report, [&](const StagePlan&, size_t i) {
    if (alone) return std::string("needed");
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
    if (components[item].first != "working") continue;
    text += row_of("  in a layer", report,
                   [](const StagePlan& plan, size_t) { return bytes(plan.memory.working_layer); });
    text += row_of("  in the loss's chunk", report,
                   [](const StagePlan& plan, size_t) { return bytes(plan.memory.working_loss); });
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

/// The chosen stage under each policy: what it keeps, and what that costs.
std::string policy_table(const Report& report) {
  std::string text = fmt::format("\n{:<32}{:>14}{:>14}{:>14}{:>14}\n",
                                 report.world_size == 1
                                     ? "gradient_checkpointing"
                                     : fmt::format("gradient_checkpointing, stage {}", report.choice.stage),
                                 "activations", "working", "total", "s a step");
  for (const PolicyEstimate& policy : report.policies) {
    const MemoryPlan& memory = policy.plan.memory;
    text += fmt::format("  {:<30}{:>14}{:>14}{:>14}{:>14}{}\n", policy.plan.gradient_checkpointing,
                        bytes(memory.activations), bytes(memory.working), bytes(memory.total()),
                        policy.step_seconds ? fmt::format("{:.3g}", *policy.step_seconds) : "-",
                        memory.total() <= report.available ? "" : "  too large");
  }
  return text;
}

std::string card_table(const Report& report) {
  std::string text =
      fmt::format("\n{:<26}", report.world_size == 1 ? "fits one card of" : "lowest ZeRO stage on cards of");
  for (const std::string_view mode : kMemoryModes) text += fmt::format("  {}", mode);
  text += "\n";
  for (const CardFit& card : report.cards) {
    text += fmt::format("  {:<24}", card.name);
    for (size_t mode = 0; mode < kMemoryModes.size(); ++mode) {
      const std::optional<int64_t>& stage = card.lowest_stage[mode];
      const std::string fits = report.world_size == 1 ? "yes" : std::to_string(stage.value_or(0));
      text += fmt::format("{:>{}}", stage ? fits : "-", kMemoryModes[mode].size() + 2);
    }
    text += "\n";
  }
  return text;
}

/// "3.2 hours", "41 s".
std::string duration_text(double hours) {
  if (hours >= 1) return fmt::format("{:.1f} hours", hours);
  return format_duration(hours * 3600);
}

std::string whole_run_line(const Report& report) {
  const WholeRun& whole = report.whole;
  if (!whole.steps) return fmt::format("whole run      unknown: {}; give --steps\n", whole.steps_from);
  std::string text =
      fmt::format("whole run      {} (from {})", counted(*whole.steps, "step"), whole.steps_from);
  if (whole.hours) text += fmt::format(": {}", duration_text(*whole.hours));
  if (whole.hours && report.world_size > 1) text += fmt::format(", {:.3g} device-hours", *whole.device_hours);
  if (whole.cost) text += fmt::format(", {:.2f} in all", *whole.cost);
  return text + (whole.hours ? ". Evaluation and saving are not in it\n" : "\n");
}

std::string estimate_lines(const Report& report) {
  const int64_t world = report.world_size;
  std::string text = fmt::format("\ncomputation    {} a token of documents of {} tokens\n",
                                 quantity(report.flops_per_token, "FLOP"), report.settings.max_length);
  if (!report.estimate) {
    return text +
           "no prediction  give --flops or --measured RUN (and --bandwidth for several ranks): rates of this "
           "device are not known\n" +
           whole_run_line(report);
  }
  const StepEstimate& estimate = *report.estimate;
  const double tokens =
      static_cast<double>(report.tokens * report.settings.gradient_accumulation_steps * world);
  text += fmt::format("prediction     {:.3g} s a step, {} tokens/s, at {} a rank{}", estimate.step,
                      format_count(tokens / estimate.step), quantity(report.rates.flops, "FLOP/s"),
                      report.rates_measured ? " (measured)" : "");
  if (world > 1) {
    text += fmt::format(" and {} sent;\n               {:.3g} s of sending a step, {:.0f} % of it hidden",
                        quantity(report.rates.bytes_per_second, "B/s"), estimate.sending,
                        100 * estimate.hidden_fraction());
  }
  text += report.rates_measured ? "\n" : ". Update, data and saving are not in it\n";
  return text + whole_run_line(report);
}

}  // namespace

std::string report_text(const Report& report) {
  const Settings& settings = report.settings;
  const ModelConfig& config = report.model.config;
  std::string text = fmt::format("model          {}: {}, {} parameters, {} trained\n",
                                 report.model.directory.string(), counted(config.num_hidden_layers, "layer"),
                                 format_count(static_cast<double>(report.model.table.parameter_count())),
                                 format_count(static_cast<double>(report.model.trained_parameters())));
  text += fmt::format("run            {} x {}, each {} x {} tokens, {} accumulated\n               {}\n",
                      report.world_size, report.device.name, settings.per_device_train_batch_size,
                      settings.max_length, settings.gradient_accumulation_steps,
                      recording_text(report.chosen().memory.recording));
  text += fmt::format("               {}\n", report.choice.reason);
  if (!report.device.on_card && report.world_size > 1)
    text += "               its ranks share the memory of this machine (--device names another)\n";
  const ParameterBytes& each = report.parameter_bytes;
  text += fmt::format(
      "optimizer      {:.4g} bytes a trained parameter: master {:.4g}, moments {:.4g}; {:.4g} with weights "
      "{} "
      "and gradients {}\n",
      each.optimizer(), each.master, each.moments,
      each.optimizer() + static_cast<double>(each.weights + each.gradients), each.weights, each.gradients);
  if (!report.warning.empty()) text += fmt::format("WARNING        {}\n", report.warning);
  text += "\n" + memory_table(report);
  if (report.world_size > 1) text += traffic_table(report);
  return text + policy_table(report) + card_table(report) + estimate_lines(report);
}

}  // namespace satune
