// What `satune plan` finds out, and its two forms: tables and JSON.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"
#include "trainer/device_rates.h"
#include "trainer/memory_modes.h"
#include "trainer/model_plan.h"
#include "trainer/settings.h"
#include "trainer/traffic_plan.h"

namespace satune {

inline constexpr size_t kStages = 4;

struct PlanRequest {
  std::string config, device, measured;
  std::vector<std::string> overrides;
  int64_t world_size = 1;
  std::optional<int64_t> stage, steps;
  std::optional<double> flops, bandwidth, price;
  bool json = false;
};

/// One column of the table.
struct StagePlan {
  MemoryPlan memory;
  TrafficPlan traffic;
  int64_t usual_bytes = 0;
};

/// One activation policy at the chosen stage.
struct PolicyEstimate {
  PolicyPlan plan;
  std::optional<double> step_seconds;
};

/// What each trained parameter takes, before anything is cut over ranks.
struct ParameterBytes {
  int64_t weights = 0, gradients = 0;
  double master = 0, moments = 0;

  double optimizer() const { return master + moments; }
};

/// The run as a whole.
struct WholeRun {
  std::optional<int64_t> steps;
  std::string steps_from;  ///< "--steps", "max_steps", "the data"; where unset, why
  std::optional<double> hours, device_hours, cost;
};

/// Everything that is printed.
struct Report {
  Settings settings;
  ModelPlan model;
  DeviceRates device;
  int64_t world_size = 1, shard_group = 1, available = 0, tokens = 0, threads = 1;
  ParameterBytes parameter_bytes;
  std::array<StagePlan, kStages> stages;
  StageChoice choice;
  double flops_per_token = 0;
  Rates rates;  ///< 0 where unknown
  bool rates_measured = false;
  std::optional<StepEstimate> estimate;
  std::array<PolicyEstimate, 3> policies;
  std::vector<CardFit> cards;
  WholeRun whole;
  std::string warning;  ///< why_it_will_not_fit()

  PlannedRun run() const { return planned_run(model, settings, device.on_card, threads); }
  Sharded sharded() const { return {world_size, choice.stage, shard_group}; }
  const StagePlan& chosen() const { return stages[static_cast<size_t>(choice.stage)]; }
};

/// Reads the config and the model's headers; the data too where the number of steps follows from it (its
/// tokens then stand in the token cache). Throws BadInput.
Report make_report(const PlanRequest& options);

std::string report_text(const Report& report);
Json report_json(const Report& report);

}  // namespace satune
