// The agreed stop, with ranks as threads over a store in memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/trainer/fake_ranks.h"
#include "trainer/coordinator.h"
#include "trainer/rank_records.h"
#include "trainer/run_store.h"

namespace satune::coordinator_stop_test {
namespace {

using namespace trainer_test;  // NOLINT
using ::testing::MatchesRegex;
using ::testing::StartsWith;

// One run: ranks walk through checkpoints, held sections and collectives until a signal on some of them, at
// some moment, stops them all.
class StopRound {
 public:
  explicit StopRound(uint64_t seed)
      : random_(seed), size_(2 + static_cast<int64_t>(seed % 3)), pattern_(pick(1000)), collectives_(size_) {}

  void run() {
    FakeServer server;
    CoordinatorOptions options = fast_options();
    options.beat = 0.001;
    auto ranks = make_ranks(server, size_, options);
    std::vector<int64_t> passed(static_cast<size_t>(size_), 0);
    std::vector<std::unique_ptr<MainThread>> threads;
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      threads.push_back(std::make_unique<MainThread>(
          [&, rank, seed = random_()] { return walk(ranks[rank]->coordinator(), seed, passed[rank]); }));
    }
    const int64_t signals = 1 + pick(size_);
    for (int64_t i = 0; i < signals; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(pick(1500)));
      ranks[static_cast<size_t>(pick(size_))]->signal("SIGTERM");
    }
    for (auto& thread : threads) EXPECT_EQ(thread->join().kind, "interrupted");
    for (const int64_t number : passed) EXPECT_EQ(number, passed.front());
    EXPECT_FALSE(held_at(passed.front() + 1));
    for (auto& rank : ranks) {
      EXPECT_TRUE(rank->coordinator().stopping());
      EXPECT_EQ(rank->coordinator().stop_reason(), ranks.front()->coordinator().stop_reason());
      EXPECT_THAT(rank->coordinator().stop_reason(), MatchesRegex("SIGTERM on rank [0-3]"));
      EXPECT_FALSE(rank->ended());
    }
  }

 private:
  int64_t pick(int64_t count) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(count)); }
  bool held_at(int64_t checkpoint) const { return (checkpoint / 4 + pattern_) % 3 == 0; }
  bool collective_after(int64_t checkpoint) const { return (checkpoint * 7 + pattern_) % 3 != 0; }

  std::string walk(Coordinator& coordinator, uint64_t seed, int64_t& passed) {
    std::minstd_rand random(static_cast<unsigned>(seed));
    for (;;) {
      const bool held = held_at(passed + 1);
      if (held) coordinator.hold();
      coordinator.checkpoint();
      ++passed;
      if (collective_after(passed)) {
        const InCollective in(coordinator, "a collective");
        if (!collectives_.meet(passed)) throw std::runtime_error("ranks hang in a collective");
      }
      if (held) coordinator.release();
      if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
    }
  }

  std::mt19937_64 random_;
  const int64_t size_, pattern_;
  FakeCollectives collectives_;
};

TEST(CoordinatorStop, AllStopAtTheSameCheckpointWheneverAndWhereverTheSignalComes) {
  for (uint64_t seed = 0; seed < 1000 && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    StopRound(seed).run();
  }
}

TEST(CoordinatorStop, AStopReachesARankThatWaitsInACollective) {
  FakeServer server;
  FakeCollectives collectives(2);
  auto ranks = make_ranks(server, 2, fast_options());
  MainThread blocked([&] {
    Coordinator& coordinator = ranks[0]->coordinator();
    coordinator.checkpoint();
    coordinator.checkpoint();
    const InCollective in(coordinator, "all-gather of parameters");
    collectives.meet(0);
    return walk_for_ever(coordinator);
  });
  ranks[0]->signal("SIGINT");
  // Its own first checkpoint that waits is behind the collective that rank 0 needs it for.
  MainThread late([&] {
    Coordinator& coordinator = ranks[1]->coordinator();
    while (!coordinator.stopping()) std::this_thread::yield();
    coordinator.checkpoint();
    coordinator.checkpoint();
    collectives.meet(0);
    return walk_for_ever(coordinator);
  });
  EXPECT_EQ(blocked.join().kind, "interrupted");
  EXPECT_EQ(late.join().kind, "interrupted");
  EXPECT_EQ(ranks[1]->coordinator().stop_reason(), "SIGINT on rank 0");
}

TEST(CoordinatorStop, AStopAfterTheLastCheckpointStopsNobody) {
  FakeServer server;
  auto ranks = make_ranks(server, 2, fast_options());
  for (int i = 0; i < 5; ++i) ranks[1]->coordinator().checkpoint();
  ranks[1]->coordinator().leave();
  ranks[0]->signal("SIGTERM");
  for (int i = 0; i < 5; ++i) ranks[0]->coordinator().checkpoint();
  EXPECT_EQ(outcome_of([&] {
              ranks[0]->coordinator().leave();
              return "";
            }).kind,
            "returned");
}

// While ranks read data or weights, or wait for the export. Their main threads come by nowhere.
TEST(CoordinatorStop, WithNothingToSaveAStopOnOneRankEndsAllAtOnce) {
  FakeServer server;
  auto ranks = make_ranks(server, 3, fast_options());
  for (auto& rank : ranks) rank->coordinator().end_at_once();
  ranks[1]->signal("SIGTERM");
  for (auto& rank : ranks) {
    EXPECT_EQ(rank->wait_for_end(), std::pair(std::string("SIGTERM on rank 1"), int{kExitResumable}));
    EXPECT_TRUE(rank->coordinator().failure_is_stop());
  }
}

TEST(CoordinatorStop, WithNothingToSaveAStopReachesWhoWaits) {
  FakeServer server;
  auto ranks = make_ranks(server, 2, fast_options());
  for (auto& rank : ranks) rank->coordinator().end_at_once();
  MainThread waiting([&] { return ranks[1]->coordinator().wait_for("what rank 0 makes"); });
  ranks[0]->signal("SIGINT");
  const Outcome& outcome = waiting.join();
  EXPECT_EQ(outcome.kind, "failed");
  EXPECT_EQ(outcome.message, "SIGINT on rank 0");
  EXPECT_EQ(outcome.exit_code, kExitResumable);
}

// The first has begun to train and waits for the other, which still loads.
TEST(CoordinatorStop, OneThatWouldSaveDoesNotWaitForOneThatNeedNot) {
  for (const size_t asked : {0, 1}) {
    FakeServer server;
    auto ranks = make_ranks(server, 2, fast_options());
    ranks[1]->coordinator().end_at_once();
    MainThread training([&] { return walk_for_ever(ranks[0]->coordinator()); });
    ranks[asked]->signal("SIGTERM");
    const Outcome& outcome = training.join();
    EXPECT_EQ(outcome.kind, "failed");
    EXPECT_EQ(outcome.message, fmt::format("SIGTERM on rank {}", asked));
    EXPECT_EQ(outcome.exit_code, kExitResumable);
    EXPECT_TRUE(ranks[0]->coordinator().failure_is_stop());
    EXPECT_EQ(ranks[1]->wait_for_end().second, kExitResumable);
  }
}

// As when torchrun ends the survivors of a lost rank.
TEST(CoordinatorStop, AStopWithALostRankSavesNothing) {
  FakeServer server;
  CoordinatorOptions options = fast_options();
  options.lost_after = 1.5;
  auto ranks = make_ranks(server, 3, options, /*agent_store=*/true);
  ranks[2]->set_fault(Fault::kHangs);
  ranks[1]->signal("SIGTERM");
  std::vector<std::unique_ptr<MainThread>> threads;
  for (size_t rank = 0; rank < 2; ++rank) {
    threads.push_back(std::make_unique<MainThread>(
        [&coordinator = ranks[rank]->coordinator()] { return walk_for_ever(coordinator); }));
  }
  for (size_t rank = 0; rank < 2; ++rank) {
    const Outcome& outcome = threads[rank]->join();
    EXPECT_EQ(outcome.kind, "failed");
    EXPECT_THAT(outcome.message, StartsWith("rank 2 (host "));
    EXPECT_EQ(outcome.exit_code, rank == 1 ? kExitResumable : kExitEnvironment);
  }
}

TEST(CoordinatorStop, AStopThatARankDoesNotAnswerSavesNothing) {
  FakeServer server;
  CoordinatorOptions options = fast_options();
  options.lost_after = 0.5;
  FakeRank leader(server, 0, 2, options);
  leader.start();
  leader.signal("SIGTERM");
  std::atomic<bool> done{false};
  // Rank 1 beats and does nothing else.
  std::thread beating([&] {
    const auto store = server.connect();
    Heartbeat heartbeat;
    heartbeat.process = this_process();
    while (!done) {
      ++heartbeat.counter;
      heartbeat.knows_failure = store->get(kFailureKey).has_value();
      store->set(heartbeat_key(1), encode(heartbeat));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  const Outcome outcome = outcome_of([&] { return walk_for_ever(leader.coordinator()); });
  done = true;
  beating.join();
  EXPECT_THAT(outcome.message,
              MatchesRegex("rank 1 .* has not answered to SIGTERM on rank 0 within .* s; last heard of "
                           "in start"));
  EXPECT_EQ(outcome.exit_code, kExitResumable);
}

}  // namespace
}  // namespace satune::coordinator_stop_test
