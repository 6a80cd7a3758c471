// The ranks of an evaluation: each works through its own items, and rank 0 has the results of all.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "evaluation/task.h"
#include "trainer/rank_environment.h"
#include "trainer/run_store.h"

namespace satune {

class EvalRanks {
 public:
  /// A process alone connects to nothing. Throws EnvironmentError when the store cannot be reached.
  explicit EvalRanks(RankEnvironment environment);

  const RankEnvironment& environment() const { return environment_; }
  bool is_leader() const { return environment_.world.rank == 0; }
  /// Items are dealt out one by one.
  bool owns(int64_t item) const { return item % environment_.world.size == environment_.world.rank; }

  /// All ranks call it with their results, in the same order of `name`s. Rank 0 waits for the others and
  /// returns the results of all; the others do not wait and get nothing. Whoever started the ranks ends them
  /// all when one fails.
  std::map<int64_t, ItemResult> gather(const std::string& name, std::map<int64_t, ItemResult> own);

 private:
  std::string receive(const std::string& key);

  RankEnvironment environment_;
  std::shared_ptr<RunStore> store_;  ///< none in a group of one
};

}  // namespace satune
