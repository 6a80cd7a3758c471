// Starting the ranks of a run on this machine: one process each, their signals, their failures, their
// restarts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace satune {

struct LaunchOptions {
  int64_t processes = 1;      ///< ranks on this machine (--nproc-per-node)
  int64_t max_restarts = 0;   ///< all ranks are started again so often after a failure that may not repeat
  double grace_seconds = 30;  ///< between SIGTERM and SIGKILL for ranks that outlive a failed one
};

/// Starts `program` with `arguments` (argv[1..]) `processes` times by posix_spawn, with torchrun's variables
/// set and a store of its own port on 127.0.0.1, and returns the exit code of the run when all have ended.
/// SIGTERM, SIGINT and SIGUSR1 go on to every rank. Output of rank 0 passes; lines that other ranks write to
/// stderr are prefixed with "[rank N] ". When a rank fails, its message (from its error file) is reported
/// with its number, the others get SIGTERM and later SIGKILL, and the run is started again as long as
/// `max_restarts` allows and the cause is not bad input. Ranks die with the launcher, even when it is killed.
int launch_ranks(const std::string& program, const std::vector<std::string>& arguments,
                 const LaunchOptions& options);

/// Ranks to start when none is asked for: the visible cards, at least 1. Reads /dev and CUDA_VISIBLE_DEVICES;
/// makes no CUDA call.
int64_t default_process_count();

}  // namespace satune
