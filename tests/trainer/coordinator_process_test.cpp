// Ranks as processes over a TCPStore, and what kills them.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "data/files/error.h"
#include "tests/temporary_directory.h"
#include "tests/trainer/fake_ranks.h"
#include "trainer/coordinator.h"
#include "trainer/run_store.h"

namespace satune::coordinator_process_test {
namespace {

using namespace trainer_test;  // NOLINT
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

constexpr auto kLong = std::chrono::minutes(1);

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path + ".part") << text;
  std::filesystem::rename(path + ".part", path);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// What a rank's process runs: it says that it is there, lives in its place until it is ended, and writes down
// how.
[[noreturn]] void rank_main() {
  const std::string rank = variable("RANK"), files = variable("SATUNE_TEST_FILES"),
                    place = variable("SATUNE_TEST_PLACE");
  RankEnvironment environment;
  environment.world = {std::stoll(rank), std::stoll(variable("WORLD_SIZE"))};
  environment.local_rank = environment.world.rank;
  environment.local_world_size = environment.world.size;
  environment.master_port = static_cast<uint16_t>(std::stoi(variable("MASTER_PORT")));
  environment.agent_store = variable("SATUNE_TEST_AGENT_STORE") == "1";
  CoordinatorOptions options;
  options.beat = 0.1;
  options.lost_after = 2;
  options.grace = 0.5;

  const auto end = [&](const std::string& message, int exit_code) {
    write_file(files + "/end." + rank, message);
    _exit(exit_code);
  };
  int64_t passed = 0;
  const Outcome outcome = outcome_of([&] {
    SignalWatch signals;
    signals.defer_stop();
    const auto coordinator = make_coordinator(
        environment, signals, options, [&] { return connect_store(environment, std::chrono::seconds(60)); },
        [&](const RunFailed& failure) { end(failure.what(), failure.exit_code()); });
    coordinator->defer_stop();
    coordinator->at_step(12);
    coordinator->at_phase("backward", 3);
    std::optional<InCollective> collective;
    if (place == "collective") collective.emplace(*coordinator, "reduce-scatter of gradients");
    coordinator->barrier("started");
    coordinator->explain("");  // all have read where this rank is
    write_file(files + "/started." + rank, "");
    if (place == "failure" && environment.world.rank == 0) {
      coordinator->announce_failure("no space left on device", kExitBadInput);
      _exit(kExitBadInput);
    }
    while (collective) pause();
    if (place == "store") return coordinator->wait_for("a key that nobody publishes");
    try {
      for (;;) {
        coordinator->checkpoint();
        ++passed;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    } catch (const Interrupted&) {
      coordinator->barrier("stopped");  // as a run saves: nobody is gone before all have stopped
      throw;
    }
  });
  end(outcome.kind == "interrupted" ? "interrupted after " + std::to_string(passed) : outcome.message,
      outcome.exit_code);
  abort();
}

// Started by RankProcesses as a process of its own.
TEST(RankProcess, DISABLED_Main) {
  rank_main();
}

class RankProcesses : public ::testing::Test {
 protected:
  ~RankProcesses() override {
    for (const pid_t pid : pids_) {
      if (pid == 0) continue;
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  // Returns when all are there. The store is the test's, as torchrun's agent would hold it, or rank 0's.
  void start(int ranks, const std::string& place, bool agent_store) {
    server_ = open_store_server(0);
    const uint16_t port = server_->port();
    if (!agent_store) server_.reset();
    for (int rank = 0; rank < ranks; ++rank) {
      pids_.push_back(spawn({"RANK=" + std::to_string(rank), "WORLD_SIZE=" + std::to_string(ranks),
                             "MASTER_PORT=" + std::to_string(port), "SATUNE_TEST_PLACE=" + place,
                             "SATUNE_TEST_FILES=" + files(), "OMP_NUM_THREADS=1",
                             std::string("SATUNE_TEST_AGENT_STORE=") + (agent_store ? "1" : "0")}));
    }
    for (int rank = 0; rank < ranks; ++rank) {
      ASSERT_TRUE(wait_for_file("started." + std::to_string(rank))) << "rank " << rank;
    }
  }

  void send(int rank, int signal) { kill(pid(rank), signal); }
  pid_t pid(int rank) const { return pids_[static_cast<size_t>(rank)]; }

  bool running(int rank) const {
    siginfo_t info = {};
    waitid(P_PID, static_cast<id_t>(pid(rank)), &info, WEXITED | WNOHANG | WNOWAIT);
    return info.si_pid == 0;
  }

  // Message and exit code of a rank that ends.
  std::pair<std::string, int> end_of(int rank) {
    int status = 0;
    const auto deadline = std::chrono::steady_clock::now() + kLong;
    while (waitpid(pid(rank), &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) return {"does not end", -1};
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    pids_[static_cast<size_t>(rank)] = 0;
    const int exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return {read_file(files() + "/end." + std::to_string(rank)), exit_code};
  }

  std::string named(int rank) const { return "rank " + std::to_string(rank) + " \\(host .*, pid [0-9]+\\) "; }

 private:
  std::string files() const { return directory_ / "."; }

  bool wait_for_file(const std::string& name) const {
    const auto deadline = std::chrono::steady_clock::now() + kLong;
    while (!std::filesystem::exists(directory_ / name)) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  static pid_t spawn(std::vector<std::string> environment) {
    for (char** variable = environ; *variable != nullptr; ++variable) {
      // A share of the tests is ours, not the one test of that process.
      if (!std::string_view(*variable).starts_with("GTEST_")) environment.emplace_back(*variable);
    }
    std::vector<char*> variables;
    for (std::string& variable : environment) variables.push_back(variable.data());
    variables.push_back(nullptr);
    std::vector<std::string> words = {"test_trainer", "--gtest_filter=RankProcess.DISABLED_Main",
                                      "--gtest_also_run_disabled_tests", "--gtest_brief=1"};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid = 0;
    const int error =
        posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, arguments.data(), variables.data());
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw std::runtime_error("posix_spawn failed");
    return pid;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<StoreServer> server_;
  std::vector<pid_t> pids_;
};

TEST_F(RankProcesses, AKilledRankIsNamedAtOnce) {
  start(3, "walk", /*agent_store=*/true);
  send(2, SIGKILL);
  for (const int rank : {0, 1}) {
    const auto [message, exit_code] = end_of(rank);
    EXPECT_THAT(message,
                MatchesRegex(named(2) + "is gone: its process ended; last heard of in step 12, backward of "
                                        "segment 3"));
    EXPECT_THAT(message, HasSubstr("pid " + std::to_string(pid(2))));
    EXPECT_EQ(exit_code, kExitEnvironment);
  }
}

// As torchrun does: SIGTERM to the survivors.
TEST_F(RankProcesses, SurvivorsThatAreAskedToStopLeaveWithoutSaving) {
  start(3, "walk", /*agent_store=*/true);
  send(1, SIGKILL);
  for (const int rank : {0, 2}) send(rank, SIGTERM);
  for (const int rank : {0, 2}) {
    const auto [message, exit_code] = end_of(rank);
    EXPECT_THAT(message, MatchesRegex(named(1) + "is gone: .*"));
    EXPECT_EQ(exit_code, kExitResumable);
  }
}

TEST_F(RankProcesses, ARankBlockedInACollectiveIsEnded) {
  start(2, "collective", /*agent_store=*/true);
  send(1, SIGKILL);
  const auto [message, exit_code] = end_of(0);
  EXPECT_THAT(message,
              MatchesRegex(named(1) + "is gone: its process ended; last heard of in step 12, backward of "
                                      "segment 3, reduce-scatter of gradients"));
  EXPECT_EQ(exit_code, kExitEnvironment);
}

TEST_F(RankProcesses, AStoppedRankIsNamed) {
  start(3, "walk", /*agent_store=*/true);
  send(1, SIGSTOP);
  for (const int rank : {0, 2}) {
    const auto [message, exit_code] = end_of(rank);
    EXPECT_THAT(message,
                MatchesRegex(named(1) +
                             "is lost: its process is stopped, no heartbeat for [0-9.]+ s; last heard of in "
                             "step 12, backward of segment 3"));
    EXPECT_EQ(exit_code, kExitEnvironment);
  }
}

TEST_F(RankProcesses, Rank0KilledTakesTheStoreWithItAndIsNamed) {
  start(3, "store", /*agent_store=*/false);
  send(0, SIGKILL);
  for (const int rank : {1, 2}) {
    const auto [message, exit_code] = end_of(rank);
    EXPECT_THAT(message,
                MatchesRegex(named(0) + "is gone: its process ended; last heard of in step 12, backward of "
                                        "segment 3"));
    EXPECT_EQ(exit_code, kExitEnvironment);
  }
}

TEST_F(RankProcesses, Rank0StoppedWithTheStoreIsNamed) {
  start(3, "store", /*agent_store=*/false);
  send(0, SIGSTOP);
  for (const int rank : {1, 2}) {
    const auto [message, exit_code] = end_of(rank);
    EXPECT_THAT(message,
                MatchesRegex(named(0) + "is lost, and its store with it: the run's store at .*: no "
                                        "answer for [0-9.]+ s; last heard of in step 12, backward of segment "
                                        "3"));
    EXPECT_EQ(exit_code, kExitEnvironment);
  }
}

TEST_F(RankProcesses, Rank0FailsAndEndsAtOnceWithTheStore) {
  start(3, "failure", /*agent_store=*/false);
  for (const int rank : {1, 2}) {
    const auto [message, exit_code] = end_of(rank);
    EXPECT_THAT(message, MatchesRegex(named(0) + "failed: no space left on device"));
    EXPECT_EQ(exit_code, kExitBadInput);
  }
}

TEST_F(RankProcesses, ASignalToOneStopsAllAtTheSameCheckpoint) {
  start(3, "walk", /*agent_store=*/true);
  send(1, SIGTERM);
  const auto [first, first_code] = end_of(0);
  EXPECT_THAT(first, StartsWith("interrupted after "));
  for (const int rank : {1, 2}) EXPECT_EQ(end_of(rank).first, first);
  EXPECT_EQ(first_code, kExitResumable);
}

TEST_F(RankProcesses, ASecondSignalEndsTheProcess) {
  start(2, "collective", /*agent_store=*/true);
  send(1, SIGTERM);
  // Until one comes after the first has been handled.
  while (running(1)) send(1, SIGINT);
  EXPECT_EQ(end_of(1).second, -SIGINT);
  EXPECT_THAT(end_of(0).first, MatchesRegex(named(1) + "is gone: .*"));
}

}  // namespace
}  // namespace satune::coordinator_process_test
