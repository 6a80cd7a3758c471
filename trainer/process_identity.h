// Which process on which machine this is, and whether such a process still runs: by boot id, pid namespace,
// pid and start time, out of /proc.
#pragma once

#include <cstdint>
#include <string>

namespace satune {

struct ProcessIdentity {
  std::string host;        ///< host name, for people
  std::string machine;     ///< boot id and pid namespace; "" where /proc does not tell
  int64_t pid = 0;         ///
  int64_t start_time = 0;  ///< clock ticks since boot: a pid that is used again has another one
};

ProcessIdentity this_process();

enum class ProcessState {
  kRunning,
  kStopped,    ///< by SIGSTOP or a debugger
  kGone,       ///< ended; a zombie counts
  kElsewhere,  ///< cannot be seen from here: another machine or pid namespace, or /proc that cannot be read
};

/// Costs one read of /proc/PID/stat for a process on this machine. `here` is this_process().machine.
ProcessState state_of(const ProcessIdentity& process, const std::string& here);

}  // namespace satune
