// What ranks agree on beside the numbers: that all are alive, that they stop at the same place, who failed
// and why. It talks over the store, on a thread of its own, never through the collectives that it watches.
//
// Ranks walk through the same sequence of checkpoints (one before each segment's pass, whether a rank has
// data or not). A stop is agreed on like this: a rank that is asked to stop tells the others; every rank then
// halts at its next checkpoint and says how many it has passed (its thread says so for a rank that is inside
// a collective); all go on to the largest of these numbers and throw Interrupted at the checkpoint after it.
// So all ranks have started the same collectives, and nothing of the step is applied.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "trainer/rank_environment.h"
#include "trainer/shard.h"
#include "trainer/signals.h"

namespace satune {

/// Timings of a Coordinator, in seconds.
struct CoordinatorOptions {
  double beat = 0.5;  ///< between two heartbeats
  double lost_after =
      30;  ///< without a heartbeat a rank counts as lost (at once if its process is known dead)
  double stalled_after = 1800;  ///< inside one collective (setting ddp_timeout)
  double grace = 5;             ///< that a main thread has to stop by itself before its process is ended
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

class Coordinator {
 public:
  virtual ~Coordinator() = default;

  const World& world() const { return world_; }

  virtual void at_step(int64_t step) = 0;
  virtual void at_phase(const char* phase, int segment = -1) = 0;

  /// Passes one checkpoint. Throws Interrupted as described above, and EnvironmentError when a rank was lost
  /// or has failed. Between hold() and release() nothing is thrown: an update and the gathering of what it
  /// wrote happen on all ranks or on none.
  virtual void checkpoint() = 0;
  virtual void hold() = 0;
  virtual void release() = 0;

  /// Around every wait for a collective, which it names. `what` must be a string literal.
  virtual void enter_collective(const char* what) = 0;
  virtual void leave_collective() = 0;

  /// A stop was asked for on any rank and is agreed on or underway.
  virtual bool stopping() const = 0;

  /// Keys of the run (each written once; `name` unique in a run's lifetime). wait_for() throws
  /// EnvironmentError when a rank is lost or fails before the key is there; it has no other time limit.
  virtual void publish(const std::string& name, const std::string& value) = 0;
  virtual std::string wait_for(const std::string& name) = 0;
  /// Returns when all ranks have come to the same barrier; throws as wait_for() does.
  virtual void barrier(const std::string& name) = 0;

  /// Tells the other ranks that this one ends, and why. They end with a line that names it.
  virtual void announce_failure(const std::string& message, int exit_code) = 0;
  /// What stands behind an exception from a collective: waits until it is known which rank is gone or has
  /// failed and returns the line that says so; `error` itself when every rank stays alive.
  virtual std::string explain(const std::string& error) = 0;

 protected:
  explicit Coordinator(const World& world) : world_(world) {}
  World world_;
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

/// Of a process alone: a stop takes effect at the next checkpoint.
std::unique_ptr<Coordinator> make_solo_coordinator(const SignalWatch& signals);

/// Of several ranks. `connect` makes a new connection to the run's store (the thread and the main thread use
/// one each). `end_process(message, code)` ends the process when its main thread cannot be reached any more:
/// it reports the message and does not return.
std::unique_ptr<Coordinator> make_coordinator(
    const RankEnvironment& environment, const SignalWatch& signals, const CoordinatorOptions& options,
    const std::function<std::shared_ptr<class RunStore>()>& connect,
    std::function<void(const std::string& message, int exit_code)> end_process);

}  // namespace satune
