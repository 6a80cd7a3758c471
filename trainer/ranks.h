// The ranks of a run as one of them sees them: the coordinator from the start, the process group once the run
// is planned. A run of one process is a group of one.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "trainer/coordinator.h"
#include "trainer/late_notice.h"
#include "trainer/process_group.h"
#include "trainer/rank_environment.h"
#include "trainer/run_store.h"
#include "trainer/settings.h"
#include "trainer/sharding.h"

namespace satune {

class Ranks {
 public:
  /// Goes to the store where the others are met. `end_process` as in make_coordinator(). Throws
  /// EnvironmentError.
  Ranks(const RankEnvironment& environment, const Settings& settings, const SignalWatch& signals,
        EndProcess end_process);
  ~Ranks();

  /// Meets the others: returns when all are there. To be called first, where failures are announced. Throws
  /// BadInput where this rank's WORLD_SIZE is not that of rank 0.
  void meet();

  const World& world() const { return environment_.world; }
  bool is_leader() const { return environment_.world.rank == 0; }
  Coordinator& coordinator() { return *coordinator_; }

  /// Runs `prepare` on one rank first, then on one of every other machine, then on the rest: what the first
  /// has made (a token cache) the others find. They wait on the store, where no collective can time out.
  void one_before_the_others(const std::string& name, const std::function<void()>& prepare);

  /// Connects the process groups: NCCL for tensors on a card, Gloo on the CPU. `shard_group_size`
  /// neighbouring ranks hold one model together. All ranks call it once.
  void connect_groups(const at::Device& device, int64_t shard_group_size);
  const ProcessGroups& groups() const { return *groups_; }
  /// What this rank has sent so far, in all its groups.
  Traffic traffic() const;
  /// The orderly end, after the last collective. All ranks call it.
  void end();

 private:
  std::unique_ptr<ProcessGroup> connect_group(const std::string& name, const World& world,
                                              const at::Device& device);

  RankEnvironment environment_;
  int64_t timeout_seconds_;
  std::shared_ptr<RunStore> store_;  ///< none in a group of one
  std::unique_ptr<Coordinator> coordinator_;
  std::optional<LateNotice> notice_;                       ///< until all have met
  std::unique_ptr<ProcessGroup> all_, shards_, replicas_;  ///< shards_: only where it is another than all_
  std::optional<ProcessGroups> groups_;
};

}  // namespace satune
