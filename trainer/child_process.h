// A process started by this one, and its end.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "trainer/descriptor.h"

namespace satune {

/// How a process ended: by itself with an exit code, or by a signal.
struct ProcessEnd {
  int exit_code = 0;
  int signal = 0;  ///< 0 = it exited by itself
};

struct ProcessStart {
  std::string program;                   ///< a path; not searched for
  std::vector<std::string> arguments;    ///< argv[1..]
  std::vector<std::string> environment;  ///< "NAME=VALUE" each, in place of ours of the same name
  sigset_t signal_mask;
  bool capture_output = false;  ///< stdout and stderr go into one pipe, output(), instead of to ours
};

/// Starts in a process group of its own, so that Ctrl-C at a terminal reaches us alone, with nothing to read
/// on stdin. What still runs when the object goes is killed and reaped. One thread at a time.
class ChildProcess {
 public:
  /// By posix_spawn: no fork handlers run, and other threads do not matter. Throws EnvironmentError naming
  /// the program.
  explicit ChildProcess(const ProcessStart& start);
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;

  bool running() const { return id_ > 0; }
  /// Reaps the process if it has ended: true once, in the call that finds it so. Does not wait.
  bool has_ended();
  /// Of a process that has ended.
  const ProcessEnd& end() const { return end_; }

  /// By SIGSTOP or the like: no other signal than SIGKILL ends it.
  bool is_stopped() const;

  /// Nothing happens when it has ended.
  void send(int signal) const;
  /// SIGKILL, also to what it has started itself.
  void kill() const;

  /// Non-blocking read end of its output; closed once all has been read.
  Descriptor& output() { return output_; }

 private:
  pid_t id_ = -1;
  ProcessEnd end_;
  Descriptor output_;
};

/// "SIGKILL"; "signal 63" for one without a name.
std::string signal_name(int signal);

}  // namespace satune
