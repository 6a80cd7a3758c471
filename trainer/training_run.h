// A run in progress: model, optimizer, counters and sinks, and what happens around each step.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "model/llama.h"
#include "trainer/adamw.h"
#include "trainer/attention_choice.h"
#include "trainer/background_save.h"
#include "trainer/device_metrics.h"
#include "trainer/eval_samples.h"
#include "trainer/memory_choice.h"
#include "trainer/metrics.h"
#include "trainer/profile.h"
#include "trainer/progress.h"
#include "trainer/ranks.h"
#include "trainer/run_folder.h"
#include "trainer/run_plan.h"
#include "trainer/run_state.h"
#include "trainer/schedule.h"
#include "trainer/sharding.h"
#include "trainer/signals.h"
#include "trainer/snapshot_reader.h"
#include "trainer/snapshot_store.h"
#include "trainer/step.h"

namespace satune {

class TrainingRun {
 public:
  /// Loads the model (and the snapshot, where there is one to continue from). The references must outlive it.
  /// `ops`: for everything saved; `local_ranks`: processes of the run on this machine.
  TrainingRun(RunPlan& plan, const RunFolder& folder, const SnapshotStore& store,
              const SnapshotReader* snapshot, const at::Device& device, SignalWatch& signals, Ranks& ranks,
              FileOps& ops, int64_t local_ranks);

  /// Records that many of the steps that train() will do (trainer/profile.h).
  void profile(int64_t steps);

  /// Steps until the end, an early stop or a signal; these leave the last finished step saved. Throws
  /// std::runtime_error naming step and records when loss or norm is not finite and the policy is "stop"
  /// (saved too), RunFailed when another rank is lost or fails (nothing is saved then), and what a save
  /// throws.
  ExitCode train();
  /// The exported directory, where settings ask for one; written again unless it is that of this very state.
  void finish();

  const RunState& state() const { return state_; }

 private:
  using Clock = std::chrono::steady_clock;

  void load_weights_and_state(const SnapshotReader* snapshot);
  bool finished() const;
  /// Tries the longest rows first: where memory is short a run ends here.
  void rehearse();
  void one_step();
  void after_step();
  void evaluate_and_log();
  bool evaluation_due() const;
  void note_evaluation(double loss);
  void open_samples(int64_t last_step);
  /// The run stops or has failed, on whichever rank: the answers in progress wait for no end of theirs.
  bool samples_must_end() const;
  /// What ranks tell each other after a step.
  struct Votes {
    bool save = false;              ///< any rank was asked to, or it is time
    int64_t peak_memory_bytes = 0;  ///< the largest
  };
  Votes vote();
  /// Whether any rank was asked to stop; the same answer on all.
  bool any_rank_stops();
  /// When a snapshot has to be there: on return, or while training goes on (where async_save says so).
  enum class SaveBy { kNow, kLater };
  /// `resumable`: with the optimizer's state whatever the settings say.
  void save(SaveBy by = SaveBy::kNow, bool resumable = false);
  void make_room_for_snapshot();
  void check_room_for_copy() const;
  void prune_snapshots(int64_t best_step) const;
  Json state_json() const;
  void export_epoch();
  void export_to(const std::filesystem::path& directory);
  [[noreturn]] void stop_at_nonfinite(const StepPosition& position, const StepResult& result);
  /// Counts it, or stops the run.
  void note_nonfinite(const StepPosition& position, const StepResult& result);
  bool epoch_ended() const;
  /// A log line that does not tear the progress bar.
  void clear_for_log();

  RunPlan& plan_;
  const Settings& settings_;
  const RunFolder& folder_;
  const SnapshotStore& store_;
  SignalWatch& signals_;
  Ranks& ranks_;
  Coordinator& coordinator_;
  FileOps& ops_;
  int64_t local_ranks_;  ///< of this machine
  at::Device device_;
  Json machine_, frozen_;
  ChosenAttention attention_;  ///< before memory_, which is planned for it
  MemoryChoice memory_;
  Llama model_;
  RunState state_;
  std::optional<Sharding> sharding_;
  std::optional<AdamW> optimizer_;
  std::optional<TrainingStep> step_;
  Schedule schedule_;
  std::optional<MetricsLog> metrics_;            ///< rank 0
  std::optional<DeviceMetrics> device_metrics_;  ///< rank 0
  std::optional<EvalSamples> samples_;           ///< rank 0, where asked for
  std::optional<Progress> progress_;             ///< rank 0
  /// The newest snapshot of this run: its step, and whether it can be continued from.
  int64_t saved_step_ = -1;
  bool saved_resumable_ = false;
  int64_t saves_ = 0;  ///< begun since the start; the same on all ranks
  BackgroundSave background_;
  Clock::time_point last_save_;
  std::optional<Clock::time_point> step_end_;  ///< of the step before, when the next follows at once
  std::optional<Profile> profile_;             ///< last: what it records lies in the others
};

}  // namespace satune
