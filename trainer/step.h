// One optimizer step: the micro-batches of its rows, their gradients added up, the norm, the update.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batches.h"
#include "model/llama.h"
#include "trainer/adamw.h"
#include "trainer/run_plan.h"
#include "trainer/settings.h"
#include "trainer/sharding.h"
#include "trainer/update_decision.h"

namespace satune {

/// The rows of each micro-batch that `world.rank` computes: rank r's micro-batch m starts at row
/// (m * size + r) * rows_per_micro_batch of the step. The last ones may be shorter or empty.
std::vector<StepPosition> micro_batches(const StepPosition& step, int64_t rows_per_micro_batch,
                                        const World& world);

/// The documents of the `count` rows of an epoch that have the most tokens.
std::vector<SampleView> longest_rows(BatchSource& data, int64_t epoch, int64_t count);

struct StepResult {
  double loss = 0;       ///< mean over the step's targets; NaN for a step without any
  double grad_norm = 0;  ///< before clipping; 0 for a step without targets
  double accuracy = 0;   ///< targets that were the argmax / targets
  int64_t tokens = 0, samples = 0, targets = 0;
  bool finite = true;    ///< loss and norm
  bool updated = false;  ///< false: not finite, or no target in the whole step
};

/// A record (1-based number in the training file) and the rank that computed it.
struct NonFiniteRecord {
  int64_t record = 0;
  int64_t rank = 0;
};

/// All ranks call the same functions with the same arguments, and get the same results.
class TrainingStep {
 public:
  /// The references must outlive it. `recording`: one entry per layer.
  TrainingStep(Llama& model, Sharding& sharding, AdamW& optimizer, const ProcessGroups& groups,
               Coordinator& coordinator, BatchSource& data, const Settings& settings,
               std::vector<Recording> recording);

  /// Gradients of the mean loss over all targets of the step, whose number is known beforehand, so that
  /// every micro-batch is scaled by it (times `loss_scale`, which norm and update divide out again). Update
  /// number `update` (1-based) follows unless loss or norm is not finite. A card decides that by itself: the
  /// host waits for loss and norm while it is at the update. What a checkpoint throws leaves weights and
  /// moments as they were, on all ranks.
  StepResult run(const StepPosition& position, double learning_rate, int64_t update, double loss_scale = 1);

  /// Forward and backward of the largest micro-batch of `epoch`, so that a run whose longest samples do not
  /// fit into memory ends before its first step and not when they come. Overwrites the gradients; nothing
  /// else changes. Throws EnvironmentError naming the record.
  void rehearse(int64_t epoch);

  /// Records of a step whose loss or gradient is not finite on its own; those of a whole row where no single
  /// record shows it. Overwrites the gradients.
  std::vector<NonFiniteRecord> find_nonfinite_records(const StepPosition& position);

 private:
  DeviceBatch upload(const Batch& batch);
  /// StepNumbers of all ranks, on the device.
  at::Tensor accumulate(const StepPosition& position, double loss_scale);
  /// Both return the step's sums. Where they are not finite nothing changes; on a card the update is queued
  /// all the same, and finds that out there.
  StepSums update_on_host(const StepNumbers& step, double learning_rate, int64_t number);
  StepSums update_on_card(const at::Tensor& all, StepNumbers step, double learning_rate, int64_t number);
  void apply_update(const at::Tensor& gradient_scale, double learning_rate, int64_t number);
  bool row_is_finite(const StepPosition& row, int64_t rank);
  bool record_is_finite(const SampleView& sample, int64_t rank);

  Llama& model_;
  Sharding& sharding_;
  AdamW& optimizer_;
  const ProcessGroups groups_;
  Coordinator& coordinator_;
  BatchSource& data_;
  int64_t rows_per_micro_batch_;
  double max_grad_norm_;
  std::vector<Recording> recording_;
};

}  // namespace satune
