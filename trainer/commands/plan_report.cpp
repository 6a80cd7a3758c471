#include "trainer/commands/plan_report.h"

#include <fmt/format.h>

#include <system_error>

#include "data/files/error.h"
#include "model/flops.h"
#include "trainer/device.h"
#include "trainer/measured_rates.h"
#include "trainer/optimizer_state.h"
#include "trainer/run_plan.h"

namespace satune {
namespace {

constexpr double kSecondsPerHour = 3600;

DeviceRates device_of(const PlanRequest& options, const Settings& settings) {
  if (!options.device.empty()) return parse_device_rates(options.device);
  const at::Device here = choose_device(settings.device);
  if (here.is_cpu()) return parse_device_rates("cpu");
  DeviceRates card;
  card.name = "this machine's card";
  card.memory_bytes = available_memory(here);
  return card;
}

void set_rates(Report& report, const PlanRequest& options) {
  if (!options.measured.empty()) {
    const MeasuredRate measured = measured_rate(options.measured);
    const auto kind = [](bool on_card) { return on_card ? "a card" : "the CPU"; };
    if (measured.on_card.value_or(report.device.on_card) != report.device.on_card) {
      throw bad_input(
          "--measured " + options.measured, fmt::format("a run on {}", kind(*measured.on_card)),
          fmt::format("one on {}, for which this plan is (--device)", kind(report.device.on_card)));
    }
    report.rates.flops = measured.flops;
    report.rates_measured = true;
  } else {
    report.rates.flops =
        options.flops.value_or(kPredictedUtilisation * report.device.flops(report.settings.precision));
  }
  report.rates.bytes_per_second = options.bandwidth.value_or(report.device.link(report.world_size));
  if (report.world_size == 1) report.rates.bytes_per_second = 1;  // nothing is sent
}

bool rates_are_known(const Report& report) {
  return report.rates.flops > 0 && report.rates.bytes_per_second > 0;
}

ParameterBytes parameter_bytes(const Settings& settings, int64_t world_size) {
  constexpr int64_t kMany = 1 << 20;  // so that blocks are whole
  const OptimizerBytes bytes = optimizer_bytes(StateFormat(settings), settings.precision, kMany);
  return {compute_element_bytes(settings.precision), gradient_element_bytes(settings, {0, world_size}),
          static_cast<double>(bytes.master) / kMany, static_cast<double>(bytes.moments) / kMany};
}

void plan_stages(Report& report) {
  const PlannedRun run = report.run();
  for (size_t i = 0; i < kStages; ++i) {
    const Sharded sharded{report.world_size, static_cast<int64_t>(i), report.shard_group};
    report.stages[i] = {plan_memory(run, sharded, report.available), plan_traffic(run, sharded),
                        usual_bytes_per_step(run, sharded)};
  }
  report.choice = choose_zero_stage(run, report.world_size, report.available);
  report.warning = why_it_will_not_fit(run, report.sharded(), report.available);
  const std::array<PolicyPlan, 3> policies = plan_policies(run, report.sharded(), report.available);
  for (size_t i = 0; i < policies.size(); ++i) {
    report.policies[i].plan = policies[i];
    if (!rates_are_known(report)) continue;
    report.policies[i].step_seconds =
        estimate_step(run, report.sharded(), policies[i].memory.recording, report.rates).step;
  }
}

/// Without a number of steps in sight the data is looked at, as a run would.
void count_steps(WholeRun& whole, const Report& report, const PlanRequest& options) {
  const Settings& settings = report.settings;
  std::error_code error;
  if (options.steps) {
    whole.steps = options.steps;
    whole.steps_from = "--steps";
  } else if (settings.max_steps) {
    whole.steps = settings.max_steps;
    whole.steps_from = "max_steps";
  } else if (!std::filesystem::is_directory(report.model.directory, error)) {
    whole.steps_from = "the model is an architecture alone, without a tokenizer";
  } else if (!std::filesystem::is_regular_file(settings.train_file, error)) {
    whole.steps_from = "train_file " + settings.train_file + " is not there";
  } else {
    whole.steps = RunPlan(settings, report.world_size).total_steps();
    whole.steps_from = "the data";
  }
}

void plan_whole_run(Report& report, const PlanRequest& options) {
  WholeRun& whole = report.whole;
  count_steps(whole, report, options);
  if (!whole.steps || !report.estimate) return;
  whole.hours = static_cast<double>(*whole.steps) * report.estimate->step / kSecondsPerHour;
  whole.device_hours = *whole.hours * static_cast<double>(report.world_size);
  if (options.price) whole.cost = *whole.device_hours * *options.price;
}

template <typename T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json memory_json(const MemoryPlan& plan) {
  Json memory;
  for (const auto& [name, value] : plan.items()) memory[name] = value;
  return memory;
}

Json stage_json(const StagePlan& plan, int64_t available) {
  const TrafficPlan& sent = plan.traffic;
  return {{"memory_bytes", memory_json(plan.memory)},
          {"working_bytes", {{"layer", plan.memory.working_layer}, {"loss", plan.memory.working_loss}}},
          {"total_bytes", plan.memory.total()},
          {"host_bytes", plan.memory.host},
          {"fits", plan.memory.total() <= available},
          {"sent_bytes",
           {{"reduced_per_micro_step", sent.reduced},
            {"gathered_first_micro_step", sent.gathered_first},
            {"gathered_later_micro_step", sent.gathered_later},
            {"gathered_at_update", sent.gathered_at_update},
            {"between_replicas", sent.replicated},
            {"exchanged_per_step", sent.exchanged},
            {"per_step", sent.per_step()},
            {"usual_per_step", plan.usual_bytes}}}};
}

Json policies_json(const Report& report) {
  Json policies = Json::array();
  for (const PolicyEstimate& policy : report.policies) {
    const MemoryPlan& memory = policy.plan.memory;
    policies.push_back({{"gradient_checkpointing", policy.plan.gradient_checkpointing},
                        {"activation_bytes", memory.activations},
                        {"working_bytes", memory.working},
                        {"total_bytes", memory.total()},
                        {"fits", memory.total() <= report.available},
                        {"step_seconds", or_null(policy.step_seconds)}});
  }
  return policies;
}

Json cards_json(const Report& report) {
  Json cards = Json::array();
  for (const CardFit& card : report.cards) {
    Json lowest;
    for (size_t mode = 0; mode < kMemoryModes.size(); ++mode)
      lowest[std::string(kMemoryModes[mode])] = or_null(card.lowest_stage[mode]);
    cards.push_back({{"card", card.name}, {"available_bytes", card.memory_bytes}, {"lowest_stage", lowest}});
  }
  return cards;
}

Json prediction_json(const Report& report) {
  if (!report.estimate) return nullptr;
  const StepEstimate& estimate = *report.estimate;
  Json prediction = {{"flops_per_second", report.rates.flops},        {"measured", report.rates_measured},
                     {"forward_seconds", estimate.forward},           {"backward_seconds", estimate.backward},
                     {"sending_seconds", estimate.sending},           {"exposed_seconds", estimate.exposed},
                     {"hidden_fraction", estimate.hidden_fraction()}, {"step_seconds", estimate.step}};
  if (report.world_size > 1) prediction["bytes_per_second"] = report.rates.bytes_per_second;
  return prediction;
}

}  // namespace

/// What would be asked for and not used.
void refuse_unused(const PlanRequest& options, const Report& report) {
  if (options.world_size == 1 && options.stage.value_or(0) > 0)
    throw bad_input("--stage", fmt::format("{} with one rank, which has nothing to cut", *options.stage),
                    "--world-size of at least 2 beside it");
  if (options.world_size == 1 && options.bandwidth)
    throw bad_input("--bandwidth", "one rank, which sends nothing", "--world-size of at least 2 beside it");
  if (options.price && !rates_are_known(report))
    throw bad_input("--price", fmt::format("no rate of {} to tell the hours from", report.device.name),
                    "--flops (and --bandwidth) or --measured beside it, or --device with a known card");
}

Report make_report(const PlanRequest& options) {
  Report report;
  report.settings = read_settings(options.config, options.overrides);
  report.world_size = options.world_size;
  if (options.stage) report.settings.zero_stage = options.stage;
  naming_source(report.settings, [&] {
    report.model = plan_model_or_architecture(report.settings);
    report.shard_group = shard_group_size(report.settings, options.world_size);
  });
  report.device = device_of(options, report.settings);
  report.tokens = report.settings.per_device_train_batch_size * report.settings.max_length;
  if (report.device.on_card) {
    report.available = report.device.memory_bytes;
  } else {  // all ranks on this machine
    report.available = available_memory(at::kCPU, report.world_size);
    report.threads = operator_threads_unbound(report.settings, report.world_size);
  }
  set_rates(report, options);
  report.parameter_bytes = parameter_bytes(report.settings, report.world_size);
  plan_stages(report);
  report.cards = fitting_modes(report.run(), report.world_size, report.shard_group);
  report.flops_per_token =
      training_flops_per_token(report.model.config, report.model.table, report.model.trained_mask,
                               static_cast<double>(report.settings.max_length));
  if (rates_are_known(report)) {
    report.estimate =
        estimate_step(report.run(), report.sharded(), report.chosen().memory.recording, report.rates);
  }
  plan_whole_run(report, options);
  refuse_unused(options, report);
  return report;
}

Json report_json(const Report& report) {
  Json stages = Json::array();
  for (const StagePlan& plan : report.stages) stages.push_back(stage_json(plan, report.available));
  const WholeRun& whole = report.whole;
  return {{"parameters", report.model.table.parameter_count()},
          {"trained_parameters", report.model.trained_parameters()},
          {"world_size", report.world_size},
          {"tokens_per_micro_step", report.tokens},
          {"gradient_accumulation_steps", report.settings.gradient_accumulation_steps},
          {"device", {{"name", report.device.name}, {"available_bytes", report.available}}},
          {"bytes_per_parameter",
           {{"weights", report.parameter_bytes.weights},
            {"gradients", report.parameter_bytes.gradients},
            {"master", report.parameter_bytes.master},
            {"moments", report.parameter_bytes.moments},
            {"optimizer", report.parameter_bytes.optimizer()}}},
          {"zero_stage", report.choice.stage},
          {"reason", report.choice.reason},
          {"warning", report.warning.empty() ? Json(nullptr) : Json(report.warning)},
          {"stages", std::move(stages)},
          {"policies", policies_json(report)},
          {"cards", cards_json(report)},
          {"flops_per_token", report.flops_per_token},
          {"prediction", prediction_json(report)},
          {"run",
           {{"steps", or_null(whole.steps)},
            {"steps_from", whole.steps_from},
            {"hours", or_null(whole.hours)},
            {"device_hours", or_null(whole.device_hours)},
            {"cost", or_null(whole.cost)}}}};
}

}  // namespace satune
