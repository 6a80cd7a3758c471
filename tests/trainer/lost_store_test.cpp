#include "trainer/lost_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace satune::lost_store_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

RankEnvironment environment(bool agent_store) {
  RankEnvironment environment;
  environment.world = {2, 4};
  environment.agent_store = agent_store;
  return environment;
}

Heartbeat leader(const ProcessIdentity& process) {
  Heartbeat h;
  h.process = process;
  h.step = 12;
  h.phase = "forward";
  return h;
}

// As when the link between two machines is cut: torchrun's agent beside rank 0 holds the store.
TEST(LostStore, OfALauncherOnAnotherMachineNamesRank0AndItsHost) {
  const Heartbeat elsewhere = leader({"head", "another boot", 123, 1});
  const RunFailure failure = lost_store(environment(/*agent_store=*/true), elsewhere, "no answer for 3 s");
  EXPECT_EQ(failure.message,
            "rank 0 (host head, pid 123) is lost, and its launcher's store with it: no answer for 3 s; "
            "last heard of in step 12, forward");
}

TEST(LostStore, OfALauncherOnThisMachineIsTheLaunchers) {
  const Heartbeat here = leader(this_process());
  EXPECT_EQ(lost_store(environment(/*agent_store=*/true), here, "reset").message,
            "reset (the launcher holds it)");
  EXPECT_EQ(lost_store(environment(/*agent_store=*/true), std::nullopt, "reset").message,
            "reset (the launcher holds it)");
}

TEST(LostStore, OfRank0GoesWithIt) {
  const Heartbeat elsewhere = leader({"head", "another boot", 123, 1});
  EXPECT_THAT(lost_store(environment(/*agent_store=*/false), elsewhere, "reset").message,
              HasSubstr("is lost, and its store with it: reset; last heard of in step 12, forward"));
  ProcessIdentity ended = this_process();
  ended.start_time += 1;  // another process had this id
  const std::string gone = lost_store(environment(/*agent_store=*/false), leader(ended), "reset").message;
  EXPECT_THAT(gone, HasSubstr("is gone: its process ended; last heard of in step 12, forward"));
  EXPECT_THAT(gone, Not(HasSubstr("reset")));
}

}  // namespace
}  // namespace satune::lost_store_test
