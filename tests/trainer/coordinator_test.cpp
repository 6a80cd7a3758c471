// Ranks as threads over a store in memory.
#include "trainer/coordinator.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <stdexcept>
#include <thread>

#include "tests/trainer/fake_ranks.h"

namespace satune::coordinator_test {
namespace {

using namespace trainer_test;  // NOLINT

TEST(SoloCoordinator, StopsAtTheNextCheckpointThatIsNotHeld) {
  std::string signal;
  const auto coordinator = make_solo_coordinator([&] { return signal; });
  coordinator->checkpoint();
  EXPECT_FALSE(coordinator->stopping());
  signal = "SIGTERM";
  EXPECT_TRUE(coordinator->stopping());
  EXPECT_EQ(coordinator->stop_reason(), "SIGTERM");
  {
    const Held held(*coordinator);
    const Held again(*coordinator);
    coordinator->checkpoint();
  }
  EXPECT_THROW(coordinator->checkpoint(), Interrupted);
}

TEST(SoloCoordinator, KeepsWhatItIsToldAndFailsAlone) {
  const auto coordinator = make_solo_coordinator([] { return ""; });
  coordinator->publish("tokens", "ready");
  EXPECT_EQ(coordinator->wait_for("tokens"), "ready");
  EXPECT_THROW(coordinator->wait_for("nothing"), std::logic_error);
  coordinator->barrier("start");
  coordinator->announce_failure("disk full", kExitEnvironment);
  EXPECT_EQ(coordinator->failure_code(), 0);
  EXPECT_EQ(coordinator->explain("broken"), "broken");
  coordinator->leave();
}

TEST(SoloCoordinator, IsWhatARankAloneGets) {
  const auto coordinator = make_coordinator(
      RankEnvironment(), [] { return "SIGINT"; }, CoordinatorOptions(),
      []() -> std::shared_ptr<RunStore> { throw std::logic_error("a rank alone needs no store"); },
      [](const RunFailed&) {});
  EXPECT_EQ(coordinator->world().size, 1);
  EXPECT_THROW(coordinator->checkpoint(), Interrupted);
}

TEST(Coordinator, RanksMeetInTheStore) {
  FakeServer server;
  auto ranks = make_ranks(server, 4, fast_options());
  std::atomic<int> before{0};
  std::vector<std::unique_ptr<MainThread>> threads;
  for (int64_t rank = 0; rank < 4; ++rank) {
    threads.push_back(std::make_unique<MainThread>([&, rank] {
      Coordinator& coordinator = ranks[static_cast<size_t>(rank)]->coordinator();
      if (rank == 2) coordinator.publish("tokens", "ready");
      const std::string found = coordinator.wait_for("tokens");
      for (int i = 0; i < 20; ++i) {
        ++before;
        coordinator.barrier("round " + std::to_string(i));
        if (before < 4 * (i + 1)) return std::string("a rank came through a barrier too early");
      }
      coordinator.leave();
      return found;
    }));
  }
  for (auto& thread : threads) EXPECT_EQ(thread->join().message, "ready");
  for (auto& rank : ranks) rank->stop();
}

// Rank 0 goes last: with it goes the store.
TEST(Coordinator, LeavingIsNoLoss) {
  FakeServer server;
  auto ranks = make_ranks(server, 3, fast_options());
  MainThread leader([&] {
    ranks[0]->coordinator().leave();
    ranks[0]->set_fault(Fault::kThrows);
    return "";
  });
  for (size_t rank = 2; rank > 0; --rank) {
    ranks[rank]->coordinator().leave();
    ranks[rank]->set_fault(Fault::kThrows);
    ranks[rank]->stop();
  }
  EXPECT_EQ(leader.join().kind, "returned");
}

TEST(Coordinator, GoesPromptlyWhateverItsThreadsWaitFor) {
  FakeServer server;
  CoordinatorOptions options = fast_options();
  options.beat = 60;
  auto idle = make_ranks(server, 2, options);
  options.beat = 0.002;
  FakeServer stopped;
  auto hanging = make_ranks(stopped, 2, options);
  for (auto& rank : hanging) rank->set_fault(Fault::kHangs);
  // explain() would wait for the pulse: it hangs by the time that a heartbeat should have come.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto start = std::chrono::steady_clock::now();
  for (auto& rank : idle) rank->stop();
  for (auto& rank : hanging) rank->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

double cpu_seconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(Coordinator, WaitingCostsNothing) {
  FakeServer server;
  auto ranks = make_ranks(server, 4, CoordinatorOptions());
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LT(cpu_seconds() - before, 0.1) << "four idle ranks, one second";
}

}  // namespace
}  // namespace satune::coordinator_test
