// The thread through which a rank tells the others that it lives and learns about them. Rank 0's reads every
// heartbeat and writes the bulletin; another rank's reads the bulletin, rank 0's heartbeat and that of its
// neighbour on the same host, whose process it can see. So the store serves O(ranks) records a beat in all.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/rank_environment.h"
#include "trainer/rank_records.h"
#include "trainer/rank_status.h"
#include "trainer/rank_watch.h"

namespace satune {

class RunStore;

/// Owns its connection. Lives on when its thread hangs in the store: it keeps what it uses.
class Pulse {
 public:
  Pulse(const RankEnvironment& environment, const CoordinatorOptions& options,
        std::shared_ptr<RankStatus> status, std::shared_ptr<RunStore> store);

  /// Writes the first heartbeat: from here on the others notice when this rank is lost. Throws what the store
  /// throws.
  void begin();
  /// The thread. Ends when the rank has left, the coordinator is being destroyed, or the store is lost.
  void run() noexcept;

 private:
  using Clock = RankStatus::Clock;

  void wait_for_the_end_of_leader() const;
  bool beat();
  Heartbeat write_heartbeat(bool knows_failure = false);
  std::vector<std::optional<std::string>> read(const std::vector<std::string>& keys);
  void follow(double seconds);
  bool lead(double seconds);
  void lead_stop(const std::vector<std::optional<Heartbeat>>& heartbeats);
  std::optional<RunFailure> unanswered_stop(const std::vector<std::optional<Heartbeat>>& heartbeats,
                                            double seconds);
  bool others_know(const std::vector<std::optional<Heartbeat>>& heartbeats) const;
  void accuse(const RunFailure& failure, RankVigil& vigil);
  void learn(const RunFailure& failure);

  const RankEnvironment environment_;
  const CoordinatorOptions options_;
  const std::shared_ptr<RankStatus> status_;
  const std::shared_ptr<RunStore> store_;
  const LookAtProcess look_at_;
  Clock::time_point last_beat_, last_written_;

  int64_t neighbour_;
  RankVigil leader_vigil_, neighbour_vigil_;
  RankWatch watch_;    ///< rank 0's
  Bulletin bulletin_;  ///< rank 0's
  Silence unanswered_;
};

}  // namespace satune
