#include "trainer/rank_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace satune::rank_watch_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Heartbeat heartbeat_of(int64_t pid, int64_t counter) {
  Heartbeat h;
  h.counter = counter;
  h.process = {"a", "boot", pid, 1};
  h.step = 12;
  h.phase = "backward";
  h.segment = 3;
  return h;
}

CoordinatorOptions options() {
  CoordinatorOptions options;
  options.lost_after = 30;
  options.stalled_after = 1800;
  options.start_within = 600;
  return options;
}

LookAtProcess always(ProcessState state) {
  return [state](const ProcessIdentity&) { return state; };
}

TEST(RankRecords, ComeBackAsTheyWere) {
  Heartbeat h = heartbeat_of(123, 7);
  h.collective = "reduce-scatter of gradients";
  h.collective_seconds = 1.5;
  h.file_call = "write of a";
  h.file_call_seconds = 2.5;
  h.passed = 40;
  h.halted_at = 39;
  h.stop_signal = "SIGTERM";
  h.knows_failure = h.left = true;
  EXPECT_EQ(encode(decode_heartbeat(encode(h))), encode(h));
  EXPECT_EQ(decode_heartbeat(encode(h)).halted_at, 39);
  EXPECT_EQ(decode_heartbeat(encode(heartbeat_of(1, 1))).halted_at, std::nullopt);
  const Bulletin b = {3, "SIGINT on rank 1", 17};
  EXPECT_EQ(encode(decode_bulletin(encode(b))), encode(b));
  const RunFailure f = {2, true, 3, "caf\xe9 \"quoted\"\n"};
  EXPECT_EQ(decode_failure(encode(f)).message, "caf\xef\xbf\xbd \"quoted\"\n");
}

TEST(RankRecords, PositionsRead) {
  Heartbeat h = heartbeat_of(123, 7);
  h.collective = "reduce-scatter of gradients";
  EXPECT_EQ(describe_position(h), "step 12, backward of segment 3, reduce-scatter of gradients");
  EXPECT_EQ(describe_position(Heartbeat()), "start");
  EXPECT_EQ(describe_rank(2, h), "rank 2 (host a, pid 123)");
}

TEST(RankVigil, ASilentRankIsLostByTheObserversClock) {
  RankVigil vigil(2, options(), always(ProcessState::kElsewhere));
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(vigil.look(heartbeat_of(123, i), 25));
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(vigil.look(heartbeat_of(123, 999), 7.5));
  const auto lost = vigil.look(heartbeat_of(123, 999), 0.5);
  ASSERT_TRUE(lost);
  EXPECT_EQ(lost->message,
            "rank 2 (host a, pid 123) is lost: no heartbeat for 30.5 s; last heard of in step 12, "
            "backward of segment 3");
  EXPECT_TRUE(lost->lost);
}

TEST(RankVigil, AnObserverThatSleptHearsAgainBeforeItJudges) {
  RankVigil vigil(2, options(), always(ProcessState::kElsewhere));
  EXPECT_FALSE(vigil.look(heartbeat_of(123, 1), 0.5));
  EXPECT_FALSE(vigil.look(heartbeat_of(123, 1), 3600));
  EXPECT_FALSE(vigil.look(heartbeat_of(123, 2), 0.5));
}

TEST(RankVigil, AStoppedProcessIsNamedSoOnceItIsLost) {
  RankVigil vigil(1, options(), always(ProcessState::kStopped));
  std::optional<RunFailure> lost;
  for (int i = 0; i < 100 && !lost; ++i) lost = vigil.look(heartbeat_of(9, 5), 0.5);
  ASSERT_TRUE(lost);
  EXPECT_THAT(lost->message,
              HasSubstr("rank 1 (host a, pid 9) is lost: its process is stopped, no heartbeat"));
}

TEST(RankVigil, AnEndedProcessIsLostAtOnceUnlessItHadLeft) {
  RankVigil vigil(2, options(), always(ProcessState::kGone));
  const auto lost = vigil.look(heartbeat_of(123, 1), 0.5);
  ASSERT_TRUE(lost);
  EXPECT_EQ(
      lost->message,
      "rank 2 (host a, pid 123) is gone: its process ended; last heard of in step 12, backward of segment 3");
  Heartbeat last = heartbeat_of(123, 2);
  last.left = true;
  EXPECT_FALSE(vigil.look(last, 0.5));
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(vigil.look(last, 7.5));
}

TEST(RankVigil, ARankThatNeverCame) {
  RankVigil vigil(2, options(), always(ProcessState::kElsewhere));
  std::optional<RunFailure> lost;
  double waited = 0;
  for (; !lost && waited < 1000; waited += 1) lost = vigil.look(std::nullopt, 1);
  ASSERT_TRUE(lost);
  EXPECT_EQ(lost->message, "rank 2 has not come within 600 s");
  EXPECT_NEAR(waited, 602, 1);
}

TEST(RankWatch, CountsARoundWhenAllHaveMovedOn) {
  RankWatch watch(2, options(), always(ProcessState::kRunning));
  watch.look({heartbeat_of(1, 1), std::nullopt}, 0.5);
  EXPECT_EQ(watch.rounds(), 0);
  watch.look({heartbeat_of(1, 2), heartbeat_of(2, 1)}, 0.5);
  EXPECT_EQ(watch.rounds(), 1);
  watch.look({heartbeat_of(1, 3), heartbeat_of(2, 1)}, 0.5);
  EXPECT_EQ(watch.rounds(), 1);
  Heartbeat left = heartbeat_of(2, 1);
  left.left = true;
  watch.look({heartbeat_of(1, 3), left}, 0.5);
  EXPECT_EQ(watch.rounds(), 2);
}

class StallTest : public ::testing::Test {
 protected:
  // Rank 1 waits in a collective after 40 checkpoints.
  StallTest() {
    for (int64_t rank = 0; rank < 3; ++rank) {
      Heartbeat h = heartbeat_of(100 + rank, 0);
      h.passed = 40;
      h.collective = "reduce-scatter of gradients";
      h.collective_seconds = 10;
      ranks_.push_back(h);
    }
    ranks_[1].collective_seconds = 1801;
  }

  // Three looks with fresh heartbeats.
  std::optional<RunFailure> watch() {
    std::optional<RunFailure> failure;
    for (int i = 0; i < 3; ++i) {
      std::vector<std::optional<Heartbeat>> now;
      for (Heartbeat& h : ranks_) {
        ++h.counter;
        now.push_back(h);
      }
      EXPECT_FALSE(failure) << "before two rounds: " << failure->message;
      failure = watch_.look(now, 0.5);
    }
    return failure;
  }

  std::vector<Heartbeat> ranks_;
  RankWatch watch_{3, options(), always(ProcessState::kRunning)};
};

TEST_F(StallTest, NamesTheRankWithTheFewestCheckpoints) {
  ranks_[2].passed = 36;
  ranks_[2].phase = "forward";
  ranks_[2].segment = 2;
  ranks_[2].collective.clear();
  const auto failure = watch();
  ASSERT_TRUE(failure);
  EXPECT_EQ(
      failure->message,
      "step 12, backward of segment 3, reduce-scatter of gradients: waited 1801 s for rank 2 (host a, pid "
      "102), which is in step 12, forward of segment 2");
  EXPECT_EQ(failure->rank, 2);
  EXPECT_FALSE(failure->lost);
}

TEST_F(StallTest, NamesTheRankThatHasNotComeToTheCollective) {
  ranks_[0].collective.clear();
  const auto failure = watch();
  ASSERT_TRUE(failure);
  EXPECT_THAT(failure->message, HasSubstr("waited 1801 s for rank 0 (host a, pid 100), which is in step 12"));
  EXPECT_THAT(failure->message, Not(HasSubstr("rank 1 (")));
}

TEST_F(StallTest, SaysSoWhenNobodyIsBehind) {
  const auto failure = watch();
  ASSERT_TRUE(failure);
  EXPECT_THAT(failure->message, HasSubstr("waited 1801 s although every rank has come to it"));
}

TEST_F(StallTest, ARankThatComesThroughIsNoStall) {
  std::optional<RunFailure> failure;
  for (int i = 0; i < 10; ++i) {
    std::vector<std::optional<Heartbeat>> now;
    for (Heartbeat& h : ranks_) {
      ++h.counter;
      ++h.passed;
      now.push_back(h);
    }
    EXPECT_FALSE(watch_.look(now, 0.5));
  }
}

TEST_F(StallTest, StaleHeartbeatsAreNoStall) {
  std::vector<std::optional<Heartbeat>> now(ranks_.begin(), ranks_.end());
  for (int i = 0; i < 10; ++i) {
    now[1]->counter = i;
    EXPECT_FALSE(watch_.look(now, 0.5));
  }
}

TEST_F(StallTest, AFileThatDoesNotAnswerComesBeforeThoseThatWaitForIt) {
  ranks_[2].phase = "save";
  ranks_[2].collective.clear();
  ranks_[2].file_call = "write of /runs/a/snapshots/x";
  ranks_[2].file_call_seconds = 1800;
  std::vector<std::optional<Heartbeat>> now(ranks_.begin(), ranks_.end());
  EXPECT_FALSE(watch_.look(now, 0.5));
  now[2]->file_call_seconds = 1801;
  const auto failure = watch_.look(now, 0.5);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->message,
            "rank 2 (host a, pid 102) waits for its disk: 1801 s in one call, write of "
            "/runs/a/snapshots/x; last heard of in step 12, save of segment 3");
  EXPECT_EQ(failure->rank, 2);
  EXPECT_EQ(failure->exit_code, kExitEnvironment);
  now[2]->left = true;
  EXPECT_FALSE(watch_.look(now, 0.5));
}

class ChildProcess {
 public:
  ChildProcess() : pid_(fork()) {
    if (pid_ == 0) {
      for (;;) pause();
    }
  }
  ~ChildProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

TEST(ProcessIdentity, SeesAProcessStopAndEnd) {
  const std::string here = this_process().machine;
  ASSERT_FALSE(here.empty());
  ProcessIdentity child = this_process();
  EXPECT_EQ(state_of(child, here), ProcessState::kRunning);
  EXPECT_EQ(state_of(child, "another machine"), ProcessState::kElsewhere);
  child.start_time += 1;
  EXPECT_EQ(state_of(child, here), ProcessState::kGone) << "the pid belongs to another process";
  {
    const ChildProcess process;
    child.pid = process.pid();
    // The child's own start time, which only it can tell.
    for (child.start_time -= 1; state_of(child, here) == ProcessState::kGone; ++child.start_time) {
    }
    EXPECT_EQ(state_of(child, here), ProcessState::kRunning);
    kill(process.pid(), SIGSTOP);
    waitpid(process.pid(), nullptr, WUNTRACED);
    EXPECT_EQ(state_of(child, here), ProcessState::kStopped);
    kill(process.pid(), SIGKILL);
    siginfo_t info;
    waitid(P_PID, static_cast<id_t>(process.pid()), &info, WEXITED | WNOWAIT);
    EXPECT_EQ(state_of(child, here), ProcessState::kGone) << "a zombie";
  }
  EXPECT_EQ(state_of(child, here), ProcessState::kGone);
}

}  // namespace
}  // namespace satune::rank_watch_test
