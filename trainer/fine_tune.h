// A fine-tuning run from settings to export, on this process. Its stages are the lines of run_training().
#pragma once

#include "data/files/atomic_file.h"
#include "trainer/settings.h"

namespace satune {

struct TrainOptions {
  FileOps* file_ops = &posix_file_ops();  ///< system calls of everything the run saves; tests inject faults
};

/// Trains as `settings` say and returns the exit code: kExitOk, or kExitResumable after SIGTERM or Ctrl-C.
/// Throws BadInput and EnvironmentError (a failed save among them: the run ends, the snapshot before it is
/// intact), and std::runtime_error when a loss or gradient norm is not finite and `nonfinite` is "stop".
int run_training(const Settings& settings, const TrainOptions& options = {});

}  // namespace satune
