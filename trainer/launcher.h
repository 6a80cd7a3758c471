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
  std::vector<std::string> default_environment;  ///< "NAME=VALUE" for every rank where NAME is not set yet
  /// The program begins with signals_of_ranks() blocked and takes them itself.
  bool signals_when_ready = false;
};

struct LaunchEnd {
  int exit_code = 0;
  int stop_signal = 0;  ///< SIGTERM, SIGINT or SIGHUP that this process got and passed on; 0 = none
  bool killed = false;  ///< by it, the second of them: a rank may have saved nothing
};

/// Starts `program` with `arguments` (argv[1..]) `processes` times, each in a process group of its own, with
/// torchrun's variables set and a store of its own port on 127.0.0.1, and returns the end of the run when all
/// have ended; its exit code is that of the rank that failed first (kExitEnvironment if a signal killed it),
/// else kExitResumable if they were stopped, else kExitOk.
///
/// SIGTERM, SIGINT, SIGHUP and SIGUSR1 go on to every rank, each as often as it came; with
/// signals_when_ready a third stop kills who takes none. Output of rank 0 passes; what the others write comes
/// out on stderr, line by line behind "[rank N] ". When a rank fails, the others get SIGTERM and after
/// `grace_seconds` SIGKILL; "satune: error: rank N: MESSAGE" names the first cause, with the message out of
/// its error file. The ranks are all started again, at most `max_restarts`
/// times, unless the cause was bad input or a stop had been asked for. Throws EnvironmentError when a rank
/// cannot be started; none is left then. Programs that call die_with_launcher() end with this process,
/// however it ends.
///
/// Call it in the main thread, before any other thread, and before CUDA is used.
LaunchEnd launch_ranks(const std::string& program, const std::vector<std::string>& arguments,
                       const LaunchOptions& options);

/// Ranks to start when none is asked for: the visible cards, at least 1. Reads /dev and CUDA_VISIBLE_DEVICES;
/// makes no CUDA call.
int64_t default_process_count();

}  // namespace satune
