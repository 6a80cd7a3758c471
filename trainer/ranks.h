// The ranks of a run as one of them sees them: the coordinator from the start, the process group once the run
// is planned. A run of one process is a group of one.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "trainer/coordinator.h"
#include "trainer/late_notice.h"
#include "trainer/process_group.h"
#include "trainer/rank_environment.h"
#include "trainer/run_store.h"
#include "trainer/settings.h"
#include "trainer/sharding.h"
#include "trainer/signals.h"

namespace satune {

class Ranks {
 public:
  /// Writes down for whoever started this process why it ends.
  using Report = std::function<void(const std::string& message, int exit_code)>;

  /// Goes to the store where the others are met. From here on a rank that is asked to stop tells the
  /// others: until defer_stop() all end at once. Throws EnvironmentError.
  Ranks(const RankEnvironment& environment, const Settings& settings, SignalWatch& signals, Report report);
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
  /// From here on a stop takes effect at a checkpoint of coordinator(), on all ranks at the same one. Before,
  /// and after end_at_once(), it ends all ranks at once; `left` is then what the line about it says.
  void defer_stop();
  void end_at_once(std::string_view left);

  /// The orderly end, after the last collective. All ranks call it.
  void end();
  /// In a catch block of one of several ranks: tells the others why it fails, or says who has failed before
  /// it, and ends the process.
  [[noreturn]] void end_failed();

 private:
  std::unique_ptr<ProcessGroup> connect_group(const std::string& name, const World& world,
                                              const at::Device& device);

  [[noreturn]] void end_process(const RunFailed& failure);

  RankEnvironment environment_;
  SignalWatch& signals_;
  const Report report_;
  int64_t timeout_seconds_;
  std::shared_ptr<RunStore> store_;  ///< none in a group of one
  std::unique_ptr<Coordinator> coordinator_;
  std::optional<LateNotice> notice_;                       ///< until all have met
  std::unique_ptr<ProcessGroup> all_, shards_, replicas_;  ///< shards_: only where it is another than all_
  std::optional<ProcessGroups> groups_;
};

}  // namespace satune
