// Who is lost, and who keeps the others waiting: judged from heartbeats as an observer reads them one after
// another. Only the observer's own clock counts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/coordinator.h"
#include "trainer/rank_records.h"

namespace satune {

/// How long something has not moved. One look adds at most a quarter of the limit, so that an observer that
/// slept itself (a suspended job) hears again before it judges.
class Silence {
 public:
  explicit Silence(double limit) : limit_(limit) {}

  /// `seconds` have passed since the last look; `value` is what should move.
  void look(int64_t value, double seconds);
  double seconds() const { return seconds_; }
  bool too_long() const { return seconds_ > limit_; }

 private:
  double limit_, seconds_ = 0;
  std::optional<int64_t> value_;
};

using LookAtProcess = std::function<ProcessState(const ProcessIdentity&)>;

/// Over one rank.
class RankVigil {
 public:
  RankVigil(int64_t rank, const CoordinatorOptions& options, LookAtProcess look_at);

  /// One look, `seconds` after the last. Why the rank counts as lost; nullopt while it does not, and for ever
  /// once it has left in an orderly way.
  std::optional<RunFailure> look(const std::optional<Heartbeat>& heartbeat, double seconds);
  const std::optional<Heartbeat>& heartbeat() const { return heartbeat_; }
  bool lost() const { return lost_; }  ///< what the last look said

 private:
  std::optional<std::string> how_lost(const std::optional<Heartbeat>& heartbeat, double seconds);

  int64_t rank_;
  CoordinatorOptions options_;
  LookAtProcess look_at_;
  Silence absence_, silence_;
  std::optional<Heartbeat> heartbeat_;
  bool lost_ = false;
};

/// Over all ranks: rank 0's.
class RankWatch {
 public:
  RankWatch(int64_t ranks, const CoordinatorOptions& options, const LookAtProcess& look_at);

  /// One look at every rank's heartbeat. A lost rank comes before a file that does not answer, and that
  /// before a stall, which may be its consequence.
  std::optional<RunFailure> look(const std::vector<std::optional<Heartbeat>>& heartbeats, double seconds);
  /// How often every rank that has not left had moved on.
  int64_t rounds() const { return rounds_; }
  RankVigil& vigil(int64_t rank) { return vigils_[static_cast<size_t>(rank)]; }

 private:
  void count_rounds();
  std::optional<RunFailure> hung_file_call() const;
  std::optional<RunFailure> stall();
  RunFailure describe_stall(int64_t waiting_rank) const;

  CoordinatorOptions options_;
  std::vector<RankVigil> vigils_;
  std::vector<int64_t> counters_;  ///< at the end of the last round
  int64_t rounds_ = 0;
  /// The rank that has waited too long, where, and since which round that is known.
  struct Waiting {
    int64_t rank = 0, passed = 0, since_round = 0;
  };
  std::optional<Waiting> waiting_;
};

}  // namespace satune
