// A run in progress: model, optimizer, counters and sinks, and what happens around each step.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "data/files/error.h"
#include "model/llama.h"
#include "trainer/adamw.h"
#include "trainer/device_metrics.h"
#include "trainer/fine_tune.h"
#include "trainer/metrics.h"
#include "trainer/progress.h"
#include "trainer/run_folder.h"
#include "trainer/run_plan.h"
#include "trainer/run_state.h"
#include "trainer/schedule.h"
#include "trainer/signals.h"
#include "trainer/snapshot_reader.h"
#include "trainer/snapshot_store.h"
#include "trainer/step.h"

namespace satune {

class TrainingRun {
 public:
  /// Loads the model (and the snapshot, where there is one to continue from). The references must outlive it.
  TrainingRun(RunPlan& plan, RunFolder& folder, const SnapshotStore& store, const SnapshotReader* snapshot,
              const at::Device& device, SignalWatch& signals, const TrainOptions& options);

  /// Steps until the end, an early stop or a signal. Every exit leaves the last finished step saved. Throws
  /// std::runtime_error naming step and records when loss or norm is not finite and the policy is "stop".
  ExitCode train();
  /// The exported directory, where settings ask for one; written again unless it is there and nothing was
  /// trained since.
  void finish();

  const RunState& state() const { return state_; }

 private:
  using Clock = std::chrono::steady_clock;

  void load_weights_and_state(const SnapshotReader* snapshot);
  bool finished() const;
  void one_step();
  void after_step();
  void evaluate_and_log();
  bool evaluation_due() const;
  void note_evaluation(double loss);
  bool save_due();
  void save(bool resumable = false);
  Json state_json() const;
  [[noreturn]] void stop_at_nonfinite(const StepPosition& position, const StepResult& result);
  /// Counts it, or stops the run.
  void note_nonfinite(const StepPosition& position, const StepResult& result);
  bool epoch_ended();
  /// A log line that does not tear the progress bar.
  void clear_for_log();

  RunPlan& plan_;
  const Settings& settings_;
  RunFolder& folder_;
  const SnapshotStore& store_;
  SignalWatch& signals_;
  FileOps& ops_;
  at::Device device_;
  Json machine_, frozen_;
  std::vector<Recording> recording_;
  Llama model_;
  RunState state_;
  std::optional<AdamW> optimizer_;
  std::optional<TrainingStep> step_;
  Schedule schedule_;
  InterruptHooks hooks_;
  std::optional<MetricsLog> metrics_;
  DeviceMetrics device_metrics_;
  std::optional<Progress> progress_;
  int64_t saved_step_ = -1;
  bool stepped_ = false;  ///< this process has changed the weights since it started
  Clock::time_point last_save_;
};

}  // namespace satune
