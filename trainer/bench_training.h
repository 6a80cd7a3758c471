// One training step of given shapes, timed: the step of a run (TrainingStep), over random weights and tokens.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/bench_floors.h"
#include "trainer/bench_work.h"
#include "trainer/memory_plan.h"
#include "trainer/model_plan.h"
#include "trainer/ranks.h"
#include "trainer/settings.h"
#include "trainer/step_recorder.h"

namespace satune {

struct BenchLength {
  int64_t steps = 10, warm_up = 3;
  int64_t document_length = 0;  ///< tokens; divides max_length
};

/// What was measured on one rank.
struct TrainingTimes {
  std::vector<double> step_seconds;
  StepRecorder::Recorded recorded;  ///< of a few more steps, traced
  int64_t skipped_updates = 0;      ///< steps whose loss or gradients were not finite
  Floors floors;
  int64_t memory_before = 0, memory_peak = 0;  ///< bytes
  MemoryPlan plan;
  int64_t zero_stage = 0;
  std::string attention;  ///< kernel, and why this one
  double final_loss = 0;
};

/// Builds the model, takes warm_up + steps + traced steps, and gives everything back. `settings` tell batch,
/// accumulation, max_length (a row), precision, policy and stage. All ranks call it. Throws EnvironmentError
/// where memory runs out.
TrainingTimes time_training(const ModelPlan& model, const Settings& settings, const BenchLength& length,
                            const at::Device& device, Ranks& ranks, int64_t local_ranks);

/// What the floors of such a step count with.
WorkShape work_shape(const ModelPlan& model, const Settings& settings, const TrainingTimes& times,
                     const BenchLength& length, int64_t world_size);

}  // namespace satune
