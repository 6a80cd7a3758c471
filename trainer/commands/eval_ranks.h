// The ranks of an evaluation: each works through its own items, and rank 0 has the results of all.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "data/files/json.h"
#include "evaluation/task.h"
#include "trainer/coordinator.h"
#include "trainer/item_progress.h"
#include "trainer/rank_environment.h"
#include "trainer/run_store.h"

namespace satune {

/// A rank that dies is noticed by the others, within seconds on the same machine and half a minute on
/// another: each of them throws RunFailed that names it (from gather(), or ends its process where it does not
/// come by).
class EvalRanks {
 public:
  /// Meets the others. A process alone connects to nothing. Throws EnvironmentError when the store cannot be
  /// reached.
  explicit EvalRanks(const RankEnvironment& environment);
  ~EvalRanks();

  const RankEnvironment& environment() const { return environment_; }
  bool is_leader() const { return environment_.world.rank == 0; }
  /// Items are dealt out one by one.
  bool owns(int64_t item) const { return item % environment_.world.size == environment_.world.rank; }

  /// Throws BadInput that names this rank where `mine` is not what rank 0 has. All ranks call it once.
  void check_same(const Json& mine);

  /// What this rank has computed of `name` so far, for rank 0's progress().
  void tell(const std::string& name, const ItemCount& count);
  /// Of all the others.
  ItemCount progress(const std::string& name);

  /// All ranks call it with their results, in the same order of `name`s. Rank 0 waits for the others, calling
  /// `idle` now and then, and returns the results of all; the others do not wait and get nothing.
  std::map<int64_t, ItemResult> gather(const std::string& name, std::map<int64_t, ItemResult> own,
                                       const std::function<void()>& idle);

  /// The orderly end: from here on this rank may disappear. All ranks call it.
  void leave();

  /// Tells the others that this rank ends, and why; what stands behind it where another rank's failure is the
  /// cause. To be called in a catch block.
  [[noreturn]] void fail();

 private:
  std::string receive(const std::string& key, const std::function<void()>& idle);

  RankEnvironment environment_;
  std::shared_ptr<RunStore> store_;  ///< none in a group of one
  std::unique_ptr<Coordinator> coordinator_;
};

}  // namespace satune
