// What ranks agree on beside the numbers: that all are alive, that they stop at the same place, who failed
// and why. It talks over the store, on threads of its own, never through the collectives that it watches.
//
// Ranks walk through the same sequence of checkpoints (one before each segment's pass, whether a rank has
// data or not). A stop is agreed on like this: a rank that is asked to stop tells the others; every rank then
// halts at its next checkpoint and says how many it has passed (its thread says so for a rank that is inside
// a collective); all go on to the largest of these numbers and throw Interrupted at the checkpoint after it.
// So all ranks have started the same collectives, and nothing of the step is applied. Before defer_stop() and
// after end_at_once() there is nothing to save, and main threads may be far from a checkpoint: then a stop on
// one rank ends all at once, in the way of a failure.
//
// A run fails once: the first failure (a rank that says so, a lost rank, a stall) takes a ticket in the
// store, and all ranks end naming that one. A lost rank is found within two beats by another one on its host
// (its process is gone), and after `lost_after` without a heartbeat from anywhere else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "data/files/error.h"
#include "model/step_trace.h"
#include "trainer/rank_environment.h"
#include "trainer/shard.h"
#include "trainer/signals.h"

namespace satune {

class RunStore;

/// A rank was lost or has failed, and the run ends for all: to be left with exit_code() and without saving
/// anything, since what the ranks hold may differ. The message names the rank. The code is the failed rank's
/// own; for a lost rank 3, or 4 when this process was asked to stop (a launcher that sees a rank die asks the
/// others to).
class RunFailed : public EnvironmentError {
 public:
  RunFailed(const std::string& message, int exit_code, bool is_stop = false)
      : EnvironmentError(message), exit_code_(exit_code), is_stop_(is_stop) {}
  int exit_code() const { return exit_code_; }
  /// Nothing failed: a rank was asked to stop while nothing had to be saved. The message says which:
  /// "SIGTERM on rank 1".
  bool is_stop() const { return is_stop_; }

 private:
  int exit_code_;
  bool is_stop_;
};

/// Timings of a Coordinator, in seconds.
struct CoordinatorOptions {
  double beat = 0.5;  ///< between two heartbeats
  double lost_after =
      30;  ///< without a heartbeat a rank counts as lost (at once if its process is known dead)
  double stalled_after = 1800;  ///< inside one collective, or one call on a file (setting ddp_timeout)
  double start_within = 600;    ///< from the own start to the first heartbeat of every rank
  /// That a main thread has to come by (checkpoint(), wait_for() ...) when the run has failed, and again to
  /// destroy the coordinator after that, before its process is ended.
  double grace = 5;
};

/// Where a rank is: for its heartbeat, and for the line that names it when it is lost. Set by the main
/// thread.
struct Position {
  int64_t step = 0;  ///< 1-based number of the step in progress
  const char* phase =
      "start";       ///< string literals: "forward", "backward", "update", "evaluation", "save" ...
  int segment = -1;  ///< -1 = none
  const char* collective = nullptr;  ///< "reduce-scatter of gradients" ...; nullptr outside of any
};

/// at_step() to leave_collective() are for one thread, the main thread; the others may be called by any.
class Coordinator {
 public:
  virtual ~Coordinator() = default;

  const World& world() const { return world_; }

  /// Who is told, beside the heartbeat, what the main thread does; nullptr = nobody. To be set between steps.
  void set_trace(StepTrace* trace) { trace_ = trace; }
  StepTrace* trace() const { return trace_; }

  virtual void at_step(int64_t step) = 0;
  virtual void at_phase(const char* phase, int segment = -1) = 0;

  /// Passes one checkpoint. Throws Interrupted as described above (and again at each later one), and
  /// RunFailed when a rank was lost or has failed. Between hold() and release(), which nest, it only counts:
  /// an update and the gathering of what it wrote happen on all ranks or on none.
  virtual void checkpoint() = 0;
  virtual void hold() = 0;
  virtual void release() = 0;

  /// Around every wait for a collective, which it names. `what` must be a string literal.
  virtual void enter_collective(const char* what) = 0;
  virtual void leave_collective() = 0;

  /// Around a system call on a file that the run saves; `what` names both ("write of PATH"). By any thread. A
  /// rank that stays inside for `stalled_after` ends the run. begin gives the number that end takes.
  virtual int64_t begin_file_call(const std::string& what) = 0;
  virtual void end_file_call(int64_t call) = 0;

  /// From here on a stop takes effect at a checkpoint; before, and after end_at_once(), at once: the process
  /// ends (EndProcess) with RunFailed::is_stop(). Of a process alone SignalWatch decides instead.
  virtual void defer_stop() {}
  virtual void end_at_once() {}

  /// A stop was asked for on any rank and is agreed on or underway. Ranks learn of it at different moments.
  virtual bool stopping() const = 0;
  /// Which signal, and which rank got it: "SIGTERM on rank 1"; "" while not stopping().
  virtual std::string stop_reason() const = 0;

  /// Keys of the run (each written once; `name` unique in a run's lifetime). wait_for() throws
  /// RunFailed when a rank is lost or fails before the key is there; it has no other time limit.
  virtual void publish(const std::string& name, const std::string& value) = 0;
  virtual std::string wait_for(const std::string& name) = 0;
  /// Returns when all ranks have come to the same barrier; throws as wait_for() does.
  virtual void barrier(const std::string& name) = 0;

  /// Tells the other ranks that this one ends, and why. They end with a line that names it and with the same
  /// exit code. Does nothing when the run has failed already. Never throws. On the rank that holds the store
  /// it returns when the others know, or after grace / 2.
  virtual void announce_failure(const std::string& message, int exit_code) = 0;
  /// What stands behind an exception from a collective: waits until it is known which rank is gone or has
  /// failed and returns the line that says so; `error` itself when every rank stays alive. Never throws.
  virtual std::string explain(const std::string& error) = 0;
  /// Exit code that goes with the failure of the run, as RunFailed has it; 0 while none is known.
  virtual int failure_code() const = 0;
  /// What is known is a stop: RunFailed::is_stop().
  virtual bool failure_is_stop() const { return false; }

  /// The orderly end of this rank, after its last checkpoint and collective: from here on it may disappear.
  /// Rank 0 returns when all have left. Throws RunFailed. Without it the others count this rank as lost.
  virtual void leave() = 0;

 protected:
  explicit Coordinator(const World& world) : world_(world) {}
  World world_;

 private:
  StepTrace* trace_ = nullptr;
};

/// hold() and release() around a scope.
class Held {
 public:
  explicit Held(Coordinator& coordinator) : coordinator_(coordinator) { coordinator_.hold(); }
  ~Held() { coordinator_.release(); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  Coordinator& coordinator_;
};

/// enter_collective() and leave_collective() around a wait.
class InCollective {
 public:
  InCollective(Coordinator& coordinator, const char* what) : coordinator_(coordinator) {
    coordinator_.enter_collective(what);
  }
  ~InCollective() { coordinator_.leave_collective(); }
  InCollective(const InCollective&) = delete;
  InCollective& operator=(const InCollective&) = delete;

 private:
  Coordinator& coordinator_;
};

/// Name of the stop signal that this process got, "" without one; called from several threads.
using StopSignal = std::function<std::string()>;
using ConnectStore = std::function<std::shared_ptr<RunStore>()>;
using EndProcess = std::function<void(const RunFailed& failure)>;

/// Of a process alone: a stop takes effect at the next checkpoint.
std::unique_ptr<Coordinator> make_solo_coordinator(const SignalWatch& signals);
std::unique_ptr<Coordinator> make_solo_coordinator(StopSignal stop_signal);

/// Of several ranks; a rank alone gets the solo coordinator. `connect` makes a new connection to the run's
/// store (the thread and the main thread use one each). `end_process` ends the process when its main thread
/// cannot be reached any more, or a stop need not wait for it: it reports the failure and does not return; a
/// thread of the coordinator calls it. Throws what `connect` throws. The destructor returns promptly, also
/// when the store hangs.
std::unique_ptr<Coordinator> make_coordinator(const RankEnvironment& environment, const SignalWatch& signals,
                                              const CoordinatorOptions& options, const ConnectStore& connect,
                                              EndProcess end_process);
std::unique_ptr<Coordinator> make_coordinator(const RankEnvironment& environment, StopSignal stop_signal,
                                              const CoordinatorOptions& options, const ConnectStore& connect,
                                              EndProcess end_process);

}  // namespace satune
