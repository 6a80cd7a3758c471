// What the main thread of a rank and the coordinator's threads know in common, and how they wait for each
// other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "trainer/coordinator.h"
#include "trainer/rank_records.h"
#include "trainer/rank_watch.h"
#include "trainer/stop_agreement.h"

namespace satune {

class RankStatus {
 public:
  using Clock = std::chrono::steady_clock;

  /// `serves_store`: the store ends with this process.
  RankStatus(const World& world, const CoordinatorOptions& options, StopSignal stop_signal,
             bool serves_store);

  // The main thread; as in Coordinator.
  void at_step(int64_t step);
  void at_phase(const char* phase, int segment);
  void enter_collective(const char* what);
  void leave_collective();
  void hold();
  void release();
  void checkpoint();
  void defer_stop(bool deferred);
  void leave();

  // Any thread of the caller's.
  int64_t begin_file_call(const std::string& what);
  void end_file_call(int64_t call);
  bool stopping() const;
  std::string stop_reason() const;
  void throw_if_failed();
  /// Returns early when the run fails.
  void pause(double seconds);
  /// Waits until the run has failed, or every rank has shown since the call that it lives.
  std::optional<RunFailed> explain();
  /// The failure has reached a thread of the caller's: its time to end begins. With serves_store waits until
  /// the others know, or for grace / 2.
  void deliver();
  std::optional<RunFailed> failure() const;
  int failure_code() const;
  const ProcessIdentity& process() const { return process_; }

  // The thread that talks to the store.
  /// Waits for the next beat; false when the coordinator is being destroyed. From then on nothing below has
  /// an effect.
  bool wait_for_beat();
  /// What to write, `seconds` after the last one.
  Heartbeat next_heartbeat(double seconds);
  void store_answered();
  /// What to announce where this rank knows of a stop and its work need not be saved: that ends all.
  std::optional<RunFailure> stop_at_once() const;
  void learn(const RunFailure& failure);
  void learn(const Bulletin& bulletin);
  void learn_leader(const std::optional<Heartbeat>& heartbeat);
  void learn_others_know();
  std::optional<RunFailure> known_failure() const;
  /// This rank's leaving is written down, and for rank 0 that of all others.
  void has_left();
  void beat_done();
  void pulse_ended();

  // The thread that watches the others.
  bool wait_for_tick();
  int64_t answers() const;
  bool talks() const;  ///< the store is expected to answer
  std::optional<Heartbeat> leader() const;
  /// The failure, when the main thread has let its time pass; of a stop that need not wait for it as soon as
  /// the others know. Once.
  std::optional<RunFailed> take_overdue();

  // The destructor of the coordinator.
  void finish();
  bool wait_for_pulse_end(double seconds);

 private:
  using Lock = std::unique_lock<std::mutex>;
  std::string own_signal() const;
  RunFailed failed() const;
  bool overdue() const;
  void deliver(Lock& lock);
  [[noreturn]] void throw_failure(Lock& lock);
  void poke();
  bool in_a_hurry() const;

  const World world_;
  const CoordinatorOptions options_;
  const StopSignal stop_signal_;
  const bool serves_store_;
  const ProcessIdentity process_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Position position_;
  int64_t collective_visits_ = 0;
  Silence collective_silence_;
  struct FileCall {
    std::string what;
    Silence silence;
  };
  std::map<int64_t, FileCall> file_calls_;  ///< those begun and not ended, by number
  int64_t file_calls_begun_ = 0;
  StopAgreement stop_;
  std::string stop_reason_;
  bool signal_noted_ = false, stop_deferred_ = false;

  std::optional<RunFailure> failure_;
  Clock::time_point known_since_;
  std::optional<Clock::time_point> delivered_at_;
  bool others_know_ = false, ended_ = false;

  bool leaving_ = false, left_ = false, done_ = false, pulse_ended_ = false;
  int explaining_ = 0;
  int64_t pokes_ = 0, pokes_seen_ = 0;
  Clock::time_point last_beat_;
  int64_t beats_begun_ = 0, beats_done_ = 0, answers_ = 0, rounds_ = 0;
  std::optional<Heartbeat> leader_;
};

}  // namespace satune
