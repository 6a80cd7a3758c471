// Lost ranks, failures and stalls, with ranks as threads over a store in memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/trainer/fake_ranks.h"
#include "trainer/coordinator.h"
#include "trainer/rank_records.h"
#include "trainer/run_store.h"

namespace satune::coordinator_failure_test {
namespace {

using namespace trainer_test;  // NOLINT
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

// Main threads of seven ranks, each in another place, when something happens to the eighth: `other`.
class OtherRankTest : public ::testing::Test {
 protected:
  static constexpr int64_t kRanks = 8;

  OtherRankTest() : collectives_(kRanks) {
    options_ = fast_options();
    options_.lost_after = 1.5;
    options_.grace = 0.5;
  }

  void start(int64_t other, bool agent_store = true) {
    other_ = other;
    ranks_ = make_ranks(server_, kRanks, options_, agent_store);
    int place = 0;
    for (int64_t rank = 0; rank < kRanks; ++rank) {
      FakeRank& fake = *ranks_[static_cast<size_t>(rank)];
      Coordinator& coordinator = fake.coordinator();
      coordinator.at_step(12);
      coordinator.at_phase("backward", 3);
      if (rank == other) continue;
      fake.at_end = [this] {
        collectives_.break_all();
        if (stores_hang_) server_.close();
      };
      threads_.push_back({rank, std::make_unique<MainThread>([this, &coordinator, where = place++] {
                            return live(coordinator, where);
                          })});
    }
    EXPECT_EQ(place, 7);
    // Every heartbeat has been read since the positions were set.
    EXPECT_EQ(ranks_[static_cast<size_t>(other)]->coordinator().explain("all alive"), "all alive");
  }

  std::string live(Coordinator& coordinator, int where) {
    switch (where) {
      case 0:
        return walk_for_ever(coordinator);
      case 1:
        return coordinator.wait_for("a key that nobody publishes");
      case 2:
        coordinator.barrier("to which one does not come");
        return "came through a barrier";
      case 3: {
        const InCollective in(coordinator, "reduce-scatter of gradients");
        return collectives_.meet(0) ? "came through a collective" : "ended";
      }
      case 4:
        coordinator.leave();
        return "left";
      case 5: {
        while (!happened_) std::this_thread::yield();
        const std::string line = coordinator.explain("Connection closed by peer [127.0.0.1]:40123");
        throw RunFailed(line, coordinator.failure_code());
      }
      default: {
        const Held held(coordinator);
        while (coordinator.failure_code() == 0) coordinator.checkpoint();
        coordinator.checkpoint();
      }
    }
    return walk_for_ever(coordinator);
  }

  // All come to the same end; the one in the collective by the end of its process, as does one that hangs in
  // the store. A rank that leaves has seen nothing, unless it is rank 0.
  void expect_all(const ::testing::Matcher<const std::string&>& message, int exit_code) {
    happened_ = true;
    int ended = 0, left = 0;
    for (auto& [rank, thread] : threads_) {
      SCOPED_TRACE("rank " + std::to_string(rank));
      Outcome outcome = thread->join();
      if (outcome.message == "left") {
        ++left;
        continue;
      }
      if (outcome.message == "ended") {
        ++ended;
        std::tie(outcome.message, outcome.exit_code) = ranks_[static_cast<size_t>(rank)]->wait_for_end();
      } else {
        EXPECT_EQ(outcome.kind, "failed");
      }
      EXPECT_THAT(outcome.message, message);
      EXPECT_EQ(outcome.exit_code, exit_code);
    }
    EXPECT_EQ(ended, 1);
    EXPECT_EQ(left, 1);
  }

  FakeRank& other() { return *ranks_[static_cast<size_t>(other_)]; }

  CoordinatorOptions options_;
  FakeServer server_;
  FakeCollectives collectives_;
  std::vector<std::unique_ptr<FakeRank>> ranks_;
  std::vector<std::pair<int64_t, std::unique_ptr<MainThread>>> threads_;
  int64_t other_ = 0;
  std::atomic<bool> stores_hang_{false};
  std::atomic<bool> happened_{false};  ///< what happens to `other`
};

const char* const kRank2Lost =
    "rank 2 \\(host .*, pid [0-9]+\\) is lost: no heartbeat for [0-9.]+ s; last heard of "
    "in step 12, backward of segment 3";

TEST_F(OtherRankTest, CutOffIsNamedByAll) {
  start(2);
  other().set_fault(Fault::kHangs);
  expect_all(MatchesRegex(kRank2Lost), kExitEnvironment);
}

TEST_F(OtherRankTest, Rank0CutOffIsNamedByAll) {
  start(0);
  other().set_fault(Fault::kHangs);
  expect_all(
      MatchesRegex(
          "rank 0 \\(host .*, pid [0-9]+\\) is lost: no heartbeat for [0-9.]+ s; last heard of in step "
          "12, backward of segment 3"),
      kExitEnvironment);
}

TEST_F(OtherRankTest, Rank0GoneWithTheStoreIsNamedByAll) {
  start(0, /*agent_store=*/false);
  server_.close();
  expect_all(MatchesRegex("rank 0 \\(host .*, pid [0-9]+\\) is lost, and its store with it: connection reset "
                          "by peer; last heard of in step 12, backward of segment 3"),
             kExitEnvironment);
}

TEST_F(OtherRankTest, Rank0StoppedWithTheStoreIsNamedByAll) {
  start(0, /*agent_store=*/false);
  stores_hang_ = true;
  for (auto& rank : ranks_) rank->set_fault(Fault::kHangs);
  expect_all(AllOf(StartsWith("rank 0 (host "), HasSubstr("is lost, and its store with it: ")),
             kExitEnvironment);
}

TEST_F(OtherRankTest, AFailureReachesAllWithItsExitCode) {
  start(2);
  other().coordinator().announce_failure("train.json, record 7: found 3, expected a string", kExitBadInput);
  expect_all(
      MatchesRegex("rank 2 \\(host .*, pid [0-9]+\\) failed: train.json, record 7: found 3, expected a "
                   "string"),
      kExitBadInput);
  EXPECT_EQ(other().coordinator().failure_code(), kExitBadInput);
}

// What the others name must not be the loss of rank 0's store.
TEST_F(OtherRankTest, Rank0FailsAndTheStoreGoesWithIt) {
  start(0, /*agent_store=*/false);
  other().coordinator().announce_failure("no space left on device", kExitEnvironment);
  server_.close();
  expect_all(MatchesRegex("rank 0 \\(host .*, pid [0-9]+\\) failed: no space left on device"),
             kExitEnvironment);
}

TEST(CoordinatorFailure, TheFirstOfManyFailuresIsNamedByAll) {
  for (int round = 0; round < 20; ++round) {
    FakeServer server;
    auto ranks = make_ranks(server, 4, fast_options(), /*agent_store=*/true);
    std::vector<std::unique_ptr<MainThread>> threads;
    for (auto& rank : ranks) {
      threads.push_back(std::make_unique<MainThread>([&coordinator = rank->coordinator()] {
        coordinator.announce_failure("mine", kExitEnvironment);
        return walk_for_ever(coordinator);
      }));
    }
    const Outcome first = threads.front()->join();
    EXPECT_THAT(first.message, MatchesRegex("rank [0-3] .* failed: mine"));
    for (size_t rank = 1; rank < threads.size(); ++rank)
      EXPECT_EQ(threads[rank]->join().message, first.message);
  }
}

TEST(CoordinatorFailure, AFailureStandsAlthoughTheFirstTicketsHolderDied) {
  FakeServer server;
  auto ranks = make_ranks(server, 2, fast_options(), /*agent_store=*/true);
  server.connect()->add("failure/tickets", 1);
  ranks[1]->coordinator().announce_failure("disk full", kExitEnvironment);
  const Outcome outcome = outcome_of([&] { return walk_for_ever(ranks[0]->coordinator()); });
  EXPECT_THAT(outcome.message, HasSubstr("failed: disk full"));
}

TEST(CoordinatorFailure, ARankThatNeverComes) {
  FakeServer server;
  CoordinatorOptions options = fast_options();
  options.start_within = 0.2;
  FakeRank leader(server, 0, 2, options);
  leader.start();
  const Outcome outcome = outcome_of([&] {
    leader.coordinator().barrier("start");
    return "";
  });
  EXPECT_EQ(outcome.message, "rank 1 has not come within 0.2 s");
}

TEST(CoordinatorFailure, AStallNamesTheStraggler) {
  FakeServer server;
  CoordinatorOptions options = fast_options();
  options.stalled_after = 0.2;
  options.grace = 0.2;
  FakeCollectives collectives(3);
  auto ranks = make_ranks(server, 3, options);
  std::vector<std::unique_ptr<MainThread>> threads;
  for (size_t rank = 0; rank < 3; ++rank) {
    ranks[rank]->at_end = [&] { collectives.break_all(); };
    threads.push_back(std::make_unique<MainThread>([&, rank] {
      Coordinator& coordinator = ranks[rank]->coordinator();
      coordinator.at_step(12);
      coordinator.at_phase("forward", 2);
      coordinator.checkpoint();
      if (rank == 1) {
        while (coordinator.failure_code() == 0) std::this_thread::yield();
        return walk_for_ever(coordinator);
      }
      coordinator.at_phase("backward", 3);
      coordinator.checkpoint();
      const InCollective in(coordinator, "reduce-scatter of gradients");
      return std::string(collectives.meet(0) ? "met" : "ended");
    }));
  }
  const auto message = MatchesRegex(
      "step 12, backward of segment 3, reduce-scatter of gradients: waited [0-9.]+ s for rank 1 \\(host .*, "
      "pid "
      "[0-9]+\\), which is in step 12, forward of segment 2");
  EXPECT_THAT(threads[1]->join().message, message);
  for (const size_t rank : {0, 2}) {
    EXPECT_EQ(threads[rank]->join().message, "ended");
    EXPECT_THAT(ranks[rank]->wait_for_end().first, message);
    EXPECT_EQ(ranks[rank]->wait_for_end().second, kExitEnvironment);
  }
}

TEST(CoordinatorFailure, AnErrorWithEveryRankAliveIsItsOwnExplanation) {
  FakeServer server;
  auto ranks = make_ranks(server, 3, fast_options());
  for (auto& rank : ranks) EXPECT_EQ(rank->coordinator().explain("timed out"), "timed out");
  EXPECT_EQ(ranks[1]->coordinator().failure_code(), 0);
}

// A main thread that hangs while it unwinds, say in the destructor of a process group.
TEST(CoordinatorFailure, AMainThreadThatNeverGetsToItsEndIsEnded) {
  FakeServer server;
  CoordinatorOptions options = fast_options();
  options.grace = 0.1;
  auto ranks = make_ranks(server, 2, options);
  ranks[1]->coordinator().announce_failure("disk full", kExitEnvironment);
  const Outcome outcome = outcome_of([&] { return walk_for_ever(ranks[0]->coordinator()); });
  EXPECT_EQ(ranks[0]->wait_for_end().first, outcome.message);
  EXPECT_EQ(ranks[1]->wait_for_end().first, outcome.message);
}

}  // namespace
}  // namespace satune::coordinator_failure_test
