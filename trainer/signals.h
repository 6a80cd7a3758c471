// SIGTERM, Ctrl-C, a closed terminal (SIGHUP) and SIGUSR1 during a run. Handlers are installed as long as a
// SignalWatch lives (one at a time) and the previous ones restored after it.
#pragma once

#include <csignal>
#include <exception>
#include <list>
#include <string>
#include <string_view>

#include "model/llama.h"

namespace satune {

/// Thrown between segments of a pass when the run is asked to stop. Nothing of the step has been applied.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "stopped by a signal"; }
};

/// For a command whose work is kept as it is done: as long as it lives, SIGTERM, SIGINT and SIGHUP (those
/// that are not ignored) write `line` to stderr and end the process at once, with exit code 4 where
/// `resumable`, else of the signal itself. One at a time; beside a SignalWatch only made after it, and where
/// that defers no stop any more when this goes.
class StopNotice {
 public:
  StopNotice(std::string line, bool resumable);
  ~StopNotice();
  StopNotice(const StopNotice&) = delete;
  StopNotice& operator=(const StopNotice&) = delete;

 private:
  struct sigaction previous_term_, previous_int_, previous_hup_;
};

/// The line for it: "satune: stopped by a signal: {what is left}". On a terminal a bar may stand on the line
/// before.
std::string stop_line(std::string_view what_is_left);

/// Ends the process as `signal` does where no handler is: a shell sees 128 and its number.
[[noreturn]] void end_of_signal(int signal);

/// Those signals that a launcher has its ranks begin with blocked: SIGTERM, SIGINT, SIGHUP and SIGUSR1. A
/// rank that loads its libraries would die of what it handles a moment later.
const sigset_t& signals_of_ranks();
/// Unblocks them; what has come in the meantime arrives. For when this process has the handlers that it
/// wants.
void take_signals();

class SignalWatch {
 public:
  /// From here on SIGTERM, SIGINT and SIGHUP (unless it is ignored, as under nohup) end the process at once
  /// (nothing is half-written that a later run would read), SIGUSR1 is remembered, and SIGPIPE is ignored: a
  /// log that nobody reads any more ends no run. The exit code is 4, or 0 where a `stopped_file` is named
  /// (see SATUNE_STOPPED_FILE in `satune train --help`) and could be made. `line` is as in say_at_stop().
  /// Calls take_signals().
  explicit SignalWatch(std::string stopped_file = "", std::string line = "");
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  /// Between defer_stop() and end_at_once() a first one of these is only remembered and a second one
  /// ends the process as if no handler were there. One from the parent process and one from elsewhere count
  /// as one, once: a launcher passes on what its ranks may have been sent as well.
  void defer_stop();
  /// Also for a signal that was remembered and not acted upon.
  void end_at_once();
  /// stop_line(), for stderr when a stop ends the process at once; "" = none.
  void say_at_stop(std::string line);
  /// What a stop does that ends the process at once.
  [[noreturn]] void end_stopped();

  bool stop_requested() const;
  std::string stop_signal_name() const;  ///< "SIGTERM", "SIGINT", "SIGHUP"; "" without one
  /// Whether SIGUSR1 came since the last call.
  bool take_save_request();

 private:
  const std::string stopped_file_;  ///< the handler reads it, and the last of these
  std::list<std::string> lines_;
  struct sigaction previous_term_, previous_int_, previous_hup_, previous_usr1_, previous_pipe_;
};

/// Throws Interrupted before a segment's pass when a stop was requested.
class InterruptHooks : public SegmentHooks {
 public:
  explicit InterruptHooks(const SignalWatch& signals) : signals_(signals) {}
  void before_forward(int segment) override;
  void before_backward(int segment) override;

 private:
  const SignalWatch& signals_;
};

}  // namespace satune
