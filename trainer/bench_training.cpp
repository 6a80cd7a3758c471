#include "trainer/bench_training.h"

#include <ATen/ATen.h>
#include <malloc.h>

#include <algorithm>
#include <optional>

#include "data/files/error.h"
#include "trainer/adamw.h"
#include "trainer/attention_choice.h"
#include "trainer/compute_types.h"
#include "trainer/device.h"
#include "trainer/failure_report.h"
#include "trainer/fp8_trial.h"
#include "trainer/loss_scale.h"
#include "trainer/memory_choice.h"
#include "trainer/memory_modes.h"
#include "trainer/model_modes.h"
#include "trainer/sharding.h"
#include "trainer/step.h"
#include "trainer/synthetic_data.h"
#include "trainer/synthetic_weights.h"

namespace satune {
namespace {

constexpr int64_t kMostTracedSteps = 5;
constexpr double kLearningRate = 1e-6;  // weights hardly move: every step computes the same

int64_t rows_per_step(const Settings& settings, int64_t world_size) {
  return settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world_size;
}

/// Everything of a run that a step needs.
class SteppedModel {
 public:
  SteppedModel(const ModelPlan& model, const Settings& settings, const BenchLength& length,
               const at::Device& device, const AttentionChoice& attention, Ranks& ranks, int64_t stage,
               std::vector<Recording> recording)
      : rows_(rows_per_step(settings, ranks.world().size)),
        precision_(settings.precision),
        loss_scale_(LossScale::initial(settings.precision)),
        data_(synthetic_rows(
            {rows_, settings.max_length, length.document_length, model.config.vocab_size, settings.seed})),
        model_(model.config, model.trained_mask, weight_type(settings.precision), device,
               parameter_layout(static_cast<int>(stage), ranks.world().size)),
        sharding_(model_, ranks.groups(), ranks.coordinator(), static_cast<int>(stage),
                  gradient_type(settings, ranks.world())) {
    fill_synthetic(model_, sharding_, model.config.initializer_range);
    // The optimizer takes its master from the weights.
    model_.attend_by(attention);
    check_fp8(settings, device);
    use_fp8(model_, settings, stage);
    offload_activations(model_, settings);
    const bool offload = settings.optimizer_offload == OptimizerOffload::kCpu;
    optimizer_.emplace(model_.weights().trained, sharding_.weight_shards(), AdamWOptions(settings),
                       sharding_.optimizer_owner(), offload ? at::Device(at::kCPU) : device);
    sharding_.publish_weights();
    step_.emplace(model_, sharding_, *optimizer_, ranks.groups(), ranks.coordinator(), data_, settings,
                  std::move(recording));
  }

  StepResult step() {
    const StepResult result = step_->run({0, 0, rows_}, kLearningRate, updates_ + 1, loss_scale_.value);
    if (result.updated) ++updates_;
    if (!result.finite) loss_scale_.back_off(precision_);
    return result;
  }

 private:
  int64_t rows_;
  Precision precision_;
  LossScale loss_scale_;
  BatchSource data_;
  Llama model_;
  Sharding sharding_;
  std::optional<AdamW> optimizer_;
  std::optional<TrainingStep> step_;
  int64_t updates_ = 0;
};

/// Of one rank's steps: how long each took on the device, once the one before had ended.
void run_steps(SteppedModel& model, int64_t steps, StepRecorder& recorder, TrainingTimes& times) {
  for (int64_t i = 0; i < steps; ++i) {
    const TracedPart part(&recorder, "step {}", i + 1);
    const StepResult result = model.step();
    times.skipped_updates += result.updated ? 0 : 1;
    times.final_loss = result.loss;
  }
}

void take_steps(SteppedModel& model, const BenchLength& length, const at::Device& device,
                Coordinator& coordinator, TrainingTimes& times) {
  for (int64_t i = 0; i < length.warm_up; ++i) model.step();
  StepRecorder clock(device);
  run_steps(model, length.steps, clock, times);
  for (const RecordedPart& part : clock.take().parts)
    times.step_seconds.push_back(part.device.length() / 1e6);

  StepRecorder recorder(device);
  coordinator.set_trace(&recorder);
  try {
    run_steps(model, std::min(length.steps, kMostTracedSteps), recorder, times);
  } catch (...) {
    coordinator.set_trace(nullptr);
    throw;
  }
  coordinator.set_trace(nullptr);
  times.recorded = recorder.take();
}

}  // namespace

TrainingTimes time_training(const ModelPlan& model, const Settings& settings, const BenchLength& length,
                            const at::Device& device, Ranks& ranks, int64_t local_ranks) {
  TrainingTimes times;
  malloc_trim(0);  // of what ran before in this process
  begin_peak_memory(device);
  times.memory_before = peak_memory_bytes(device);
  PlannedRun planned =
      planned_run(model, settings, !device.is_cpu(), operator_threads(settings, local_ranks));
  planned.documents = planned.tokens / length.document_length;
  const ChosenAttention attention = choose_attention(settings, model.config, device);
  planned.attention = attention.choice.kernel;
  times.attention = fmt::format("{} ({})", attention.name, attention.reason);
  const int64_t world_size = ranks.world().size, available = available_memory(device, local_ranks);
  times.zero_stage =
      choose_zero_stage(planned, world_size, least_available_memory(ranks, device, local_ranks)).stage;
  const Sharded sharded{world_size, times.zero_stage, shard_group_size(settings, world_size)};
  times.plan = plan_memory(planned, sharded, available);
  try {
    SteppedModel stepped(model, settings, length, device, attention.choice, ranks, times.zero_stage,
                         times.plan.recording);
    take_steps(stepped, length, device, ranks.coordinator(), times);
    times.memory_peak = peak_memory_bytes(device);
  } catch (...) {
    if (!out_of_memory()) throw;
    const std::string why = why_it_will_not_fit(planned, sharded, available);
    throw EnvironmentError(fmt::format("out of memory: found no room for this step, expected it to fit{}{}",
                                       why.empty() ? "" : ": ", why));
  }
  times.floors = measure_floors(device, weight_type(settings.precision), settings.fp8);
  return times;
}

WorkShape work_shape(const ModelPlan& model, const Settings& settings, const TrainingTimes& times,
                     const BenchLength& length, int64_t world_size) {
  const MemoryPlan& plan = times.plan;
  const int64_t gradients = world_size == 1 ? plan.gradients : plan.sums;
  // Weights are written from a master, or are the master.
  const int64_t state = 2 * (plan.master + plan.moments) + (plan.master > 0 ? 1 : 2) * plan.weights;
  return {model.config,
          settings.per_device_train_batch_size * settings.max_length,
          length.document_length,
          settings.gradient_accumulation_steps,
          compute_element_bytes(settings.precision),
          gradient_element_bytes(settings, {0, world_size}),
          world_size == 1,
          plan.recording,
          state + gradients,
          gradients,
          settings.fp8};
}

}  // namespace satune
