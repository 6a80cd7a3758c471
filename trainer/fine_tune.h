// A fine-tuning run from settings to export, as one of its ranks goes through it. Its stages are the lines of
// run_rank() in fine_tune.cpp.
#pragma once

#include <functional>
#include <string>

#include "data/files/atomic_file.h"
#include "trainer/rank_environment.h"
#include "trainer/settings.h"

namespace satune {

struct TrainOptions {
  FileOps* file_ops = &posix_file_ops();  ///< system calls of everything the run saves; tests inject faults
  RankEnvironment ranks;                  ///< this process among those of the run; alone by default
  int64_t profile_steps = 0;              ///< to record as a trace; see trainer/profile.h
  std::string stopped_file;               ///< made by a signal that ends the process at once; see SignalWatch
  /// Tells the user why the process ends, when a run of several ranks has failed: it may be called from
  /// another thread, and the process ends right after it.
  std::function<void(const std::string& message, int exit_code)> report;
};

/// Trains as `settings` say and returns the exit code: kExitOk, or kExitResumable after SIGTERM or Ctrl-C.
/// Throws BadInput and EnvironmentError (a failed save among them: the run ends, the snapshot before it is
/// intact), and std::runtime_error when a loss or gradient norm is not finite and `nonfinite` is "stop".
/// In a run of several ranks a failure of any of them ends all: it is reported and the process ends with
/// its exit code, since threads and peers of a broken process group cannot be waited for.
int run_training(const Settings& settings, const TrainOptions& options = {});

}  // namespace satune
