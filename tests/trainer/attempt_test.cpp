#include "trainer/attempt.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "tests/trainer/ranks.h"
#include "trainer/rendezvous.h"

namespace satune::trainer_test {
namespace {

using namespace std::chrono_literals;

class Attempt : public ::testing::Test {
 protected:
  RankEnvironment environment(const World& world) const {
    RankEnvironment environment;
    environment.world = world;
    environment.master_port = server_->port();
    environment.agent_store = true;
    return environment;
  }

  /// One attempt of `size` ranks, of which `late` starts after the others. What they agreed on.
  std::set<std::string> attempt(int64_t size, int64_t late) {
    std::vector<std::string> agreed(static_cast<size_t>(size));
    const auto errors = run_ranks(size, [&](const World& world) {
      RankEnvironment mine = environment(world);
      mine.restart_count = world.rank;  // as different agents count
      if (world.rank == late) std::this_thread::sleep_for(300ms);
      agreed[static_cast<size_t>(world.rank)] = agree_on_attempt(mine, 60s).attempt;
    });
    EXPECT_EQ(errors, std::vector<std::string>(static_cast<size_t>(size)));
    return {agreed.begin(), agreed.end()};
  }

  std::unique_ptr<StoreServer> server_ = open_store_server(0);
};

TEST_F(Attempt, AllRanksAgreeAndNoTwoAttemptsAreTheSame) {
  std::set<std::string> seen;
  for (const int64_t late : {0, 1, 2, 0}) {
    const auto agreed = attempt(3, late);
    ASSERT_EQ(agreed.size(), 1);
    EXPECT_NE(*agreed.begin(), "");
    EXPECT_TRUE(seen.insert(*agreed.begin()).second) << "an earlier attempt's";
  }
  EXPECT_EQ(attempt(1, 0).size(), 1);
}

TEST_F(Attempt, MissingRanksAreNamedAndSpoilNoLaterAttempt) {
  const auto errors = run_ranks(2, [&](const World& world) {
    agree_on_attempt(environment({world.rank, 4}), 2s);
  });
  for (const std::string& error : errors) {
    EXPECT_EQ(error, "4 ranks were to meet within 2 s: ranks 2, 3 did not come");
  }
  // Ranks 2 and 3 find what the dead rank 0 has left, where they would complete the count.
  EXPECT_EQ(attempt(4, 0).size(), 1);
}

TEST_F(Attempt, AMissingRankZeroIsNamed) {
  const auto errors = run_ranks(1, [&](const World&) { agree_on_attempt(environment({1, 2}), 1s); });
  EXPECT_EQ(errors[0], "2 ranks were to meet within 1 s: rank 0 did not come");
}

TEST_F(Attempt, WithoutAnAgentNothingIsAsked) {
  RankEnvironment alone;
  alone.world = {1, 2};
  alone.master_port = 1;
  EXPECT_EQ(agree_on_attempt(alone, 1s).attempt, "");
}

TEST(NameRanks, IsShort) {
  EXPECT_EQ(name_ranks({3}), "rank 3");
  EXPECT_EQ(name_ranks({0, 2}), "ranks 0, 2");
  EXPECT_EQ(name_ranks({0, 1, 2, 3, 4, 5, 6, 7}), "ranks 0, 1, 2, 3, 4, 5, 6, 7");
  EXPECT_EQ(name_ranks({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
}

}  // namespace
}  // namespace satune::trainer_test
