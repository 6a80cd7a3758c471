// One attempt of a run on this machine: its ranks from start to end.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/child_process.h"
#include "trainer/output_lines.h"
#include "trainer/rank_failure.h"
#include "trainer/signal_events.h"

namespace satune {

/// What to start, and how to end it.
struct RankStart {
  std::string program;
  std::vector<std::string> arguments;
  int64_t processes = 1;
  double grace_seconds = 30;
  bool signals_when_ready = false;  ///< as in LaunchOptions
  /// Variables of one rank, "NAME=VALUE" each.
  std::function<std::vector<std::string>(int64_t rank)> environment;
  /// Where a rank leaves the message of its failure.
  std::function<std::filesystem::path(int64_t rank)> error_file;
};

class RankSupervision {
 public:
  /// `signals` must hold SIGCHLD and those to pass on: SIGTERM, SIGINT, SIGHUP, SIGUSR1.
  RankSupervision(const RankStart& start, SignalEvents& signals);

  /// Starts the ranks and returns when all have ended. Throws EnvironmentError when one cannot be started;
  /// ranks that still run when the object goes are killed.
  void run();

  /// In the order in which they were noticed. Ranks that ended because they were told to are not among them.
  const std::vector<RankFailure>& failures() const { return failures_; }
  /// SIGTERM, SIGINT or SIGHUP was passed on, or a rank says that it was stopped (kExitResumable).
  bool stopped() const { return stop_signal_ != 0 || rank_stopped_; }
  /// The last of these that was passed on; 0 = none.
  int stop_signal() const { return stop_signal_; }
  /// The second of them, or a later one, killed a rank, which may have saved nothing.
  bool killed_by_stop() const { return killed_by_stop_; }

 private:
  struct Rank {
    ChildProcess process;
    OutputLines lines;
    bool killed = false;  ///< by us
  };

  void start_ranks();
  void wait_for_events();
  void pass_on_output();
  void pass_on(int signal);
  void note_ends();
  void note_end(int64_t rank, const ProcessEnd& end, int64_t round);
  void end_others();
  void kill_those_left();
  bool any_running() const;
  void kill(size_t rank);
  bool told_to_end(size_t rank, int signal) const;

  const RankStart& start_;
  SignalEvents& signals_;
  std::vector<Rank> ranks_;
  std::vector<RankFailure> failures_;
  std::optional<RankFailure> left_alone_;  ///< the first that was to stop and could not save: another is lost
  int64_t rounds_ = 0;
  int stop_signal_ = 0;
  int64_t stops_ = 0;  ///< signals of that kind
  bool rank_stopped_ = false, killed_by_stop_ = false, ending_ = false, killing_ = false;
  std::chrono::steady_clock::time_point deadline_;  ///< of ranks that were told to end; once ending_
};

}  // namespace satune
