#include "trainer/stop_agreement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace satune::stop_agreement_test {
namespace {

using Passing = StopAgreement::Passing;

TEST(StopAgreement, PassesUntilAskedToHalt) {
  StopAgreement rank;
  EXPECT_EQ(rank.pass(), Passing::kPassed);
  EXPECT_EQ(rank.pass(), Passing::kPassed);
  EXPECT_EQ(rank.halt(), 2);
  EXPECT_EQ(rank.pass(), Passing::kHalted);
  EXPECT_EQ(rank.halt(), 2);
  rank.go_until(3);
  EXPECT_EQ(rank.pass(), Passing::kPassed);
  EXPECT_EQ(rank.pass(), Passing::kStopped);
  EXPECT_EQ(rank.pass(), Passing::kStopped);
  EXPECT_EQ(rank.passed(), 3);
}

TEST(StopAgreement, AHeldSectionIsPassedWhole) {
  StopAgreement rank;
  rank.hold();
  rank.hold();
  rank.halt();
  EXPECT_EQ(rank.pass(), Passing::kPassed);
  rank.go_until(0);
  rank.release();
  EXPECT_EQ(rank.pass(), Passing::kPassed);
  rank.release();
  EXPECT_EQ(rank.pass(), Passing::kStopped);
}

TEST(StopAgreement, TheDecisionWaitsForAll) {
  EXPECT_EQ(agree_on_stop({3, std::nullopt, 5}), std::nullopt);
  EXPECT_EQ(agree_on_stop({3, 7, 5}), 7);
  EXPECT_EQ(agree_on_stop({0, 0}), 0);
}

// Ranks, their monitors and rank 0's decision in any order: a random one picks who goes next. Checkpoints
// are numbered from 1; after some comes a collective, which a rank leaves only when all have come to it.
class Simulation {
 public:
  explicit Simulation(uint64_t seed)
      : random_(seed), ranks_(2 + seed % 4), pattern_(static_cast<int64_t>(random_() % 1000)) {}

  // False when nobody can go on, or somebody passed the end.
  bool run() {
    const int64_t signal_at = pick(400);
    for (int64_t turn = 0; turn < 200000; ++turn) {
      if (turn >= signal_at) asked_ = true;
      if (std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.stopped; }))
        return true;
      Rank& rank = ranks_[static_cast<size_t>(pick(static_cast<int64_t>(ranks_.size())))];
      pick(4) == 0 ? monitor(rank) : walk(rank);
      if (pick(8) == 0) decide();
    }
    return false;
  }

  std::vector<int64_t> stops() const {
    std::vector<int64_t> passed;
    for (const Rank& rank : ranks_) passed.push_back(rank.agreement.passed());
    return passed;
  }

  bool held_at(int64_t checkpoint) const { return (checkpoint / 5 + pattern_) % 3 == 0; }

 private:
  struct Rank {
    StopAgreement agreement;
    int64_t started = 0;  ///< collectives
    bool stopped = false;
    std::optional<int64_t> seen_post;  ///< what rank 0 has read
  };

  bool collective_after(int64_t checkpoint) const { return (checkpoint * 7 + pattern_) % 3 != 0; }
  int64_t pick(int64_t count) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(count)); }

  void walk(Rank& rank) {
    if (rank.stopped) return;
    const int64_t passed = rank.agreement.passed();
    if (passed > 0 && collective_after(passed)) {
      rank.started = passed;
      // A rank that is at a later checkpoint has passed this collective too.
      const bool all_here = std::all_of(ranks_.begin(), ranks_.end(), [&](const Rank& other) {
        return other.started >= passed || other.agreement.passed() > passed;
      });
      if (!all_here) return;
    }
    const bool held = held_at(passed + 1);
    if (held) rank.agreement.hold();
    rank.stopped = rank.agreement.pass() == Passing::kStopped;
    if (held) rank.agreement.release();
  }

  void monitor(Rank& rank) {
    if (asked_) rank.agreement.halt();
    if (target_) rank.agreement.go_until(*target_);
  }

  // Reads one post at a time: they arrive in any order.
  void decide() {
    Rank& read = ranks_[static_cast<size_t>(pick(static_cast<int64_t>(ranks_.size())))];
    read.seen_post = read.agreement.posted();
    std::vector<std::optional<int64_t>> posted;
    for (const Rank& rank : ranks_) posted.push_back(rank.seen_post);
    if (!target_) target_ = agree_on_stop(posted);
  }

  std::mt19937_64 random_;
  std::vector<Rank> ranks_;
  int64_t pattern_;
  bool asked_ = false;
  std::optional<int64_t> target_;
};

TEST(StopAgreement, AnyInterleavingStopsAllAtTheSameCheckpoint) {
  for (uint64_t seed = 0; seed < 20000; ++seed) {
    Simulation simulation(seed);
    ASSERT_TRUE(simulation.run()) << "seed " << seed << ": ranks hang";
    const auto stops = simulation.stops();
    for (const int64_t stop : stops) ASSERT_EQ(stop, stops.front()) << "seed " << seed;
    ASSERT_FALSE(simulation.held_at(stops.front() + 1)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace satune::stop_agreement_test
