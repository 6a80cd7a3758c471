// Ranks that are shell scripts, started by a launcher in a process of its own.
#include "trainer/launcher.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>

#include <csignal>
#include <map>
#include <set>
#include <sstream>

#include "data/files/error.h"
#include "tests/trainer/launched.h"
#include "trainer/descriptor.h"

namespace satune::trainer_test {
namespace fs = std::filesystem;
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// What a rank does when it fails with a message: `fail "MESSAGE" CODE`.
const std::string kFail =
    R"(fail() { printf '{"message": {"message": "%s", "extraInfo": {"py_callstack": "", "timestamp": "1"}}}' \
"$1" >"$TORCHELASTIC_ERROR_FILE.tmp"; mv "$TORCHELASTIC_ERROR_FILE.tmp" "$TORCHELASTIC_ERROR_FILE"; exit "$2"; }
)";
// A rank that waits as long as the test wants, and can be ended at any moment.
const std::string kWait = "while :; do sleep 0.05; done\n";

LaunchOptions ranks(int64_t processes, int64_t max_restarts = 0, double grace_seconds = 30) {
  LaunchOptions options;
  options.processes = processes;
  options.max_restarts = max_restarts;
  options.grace_seconds = grace_seconds;
  return options;
}

std::map<std::string, std::string> variables_in(const std::string& text) {
  std::map<std::string, std::string> variables;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    variables[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
  }
  return variables;
}

size_t count_of(const std::string& part, const std::string& text) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

bool port_answers(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool answers = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  ::close(fd);
  return answers;
}

bool alive(pid_t id) {
  return ::kill(id, 0) == 0;
}

/// "" when the process goes meanwhile.
std::string process_file(const std::string& id, const std::string& name) {
  std::ifstream file("/proc/" + id + "/" + name, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

TEST(LaunchedRanks, HaveTorchrunsVariablesAndAStore) {
  LaunchOptions options = ranks(3);
  options.default_environment = {"OMP_WAIT_POLICY=passive", "SATUNE_TEST_KEPT=no"};
  Launched run("env >env.tmp-$RANK; mv env.tmp-$RANK env-$RANK; while [ ! -e go ]; do sleep 0.02; done",
               options, [] {
                 ::setenv("SATUNE_TEST_KEPT", "yes", 1);
                 ::setenv("RANK", "77", 1);
                 ::unsetenv("OMP_WAIT_POLICY");
               });
  ASSERT_TRUE(run.await_each("env", 3));
  std::set<std::string> ports, error_files, ids;
  for (int rank = 0; rank < 3; ++rank) {
    auto variables = variables_in(run.file("env-" + std::to_string(rank)));
    for (const char* name : {"RANK", "LOCAL_RANK"}) EXPECT_EQ(variables[name], std::to_string(rank));
    for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) EXPECT_EQ(variables[name], "3");
    EXPECT_EQ(variables["MASTER_ADDR"], "127.0.0.1");
    EXPECT_EQ(variables["TORCHELASTIC_USE_AGENT_STORE"], "True");
    EXPECT_EQ(variables["TORCHELASTIC_RESTART_COUNT"], "0");
    EXPECT_EQ(variables["OMP_WAIT_POLICY"], "passive");
    EXPECT_EQ(variables["SATUNE_TEST_KEPT"], "yes");
    ports.insert(variables["MASTER_PORT"]);
    ids.insert(variables["TORCHELASTIC_RUN_ID"]);
    error_files.insert(variables["TORCHELASTIC_ERROR_FILE"]);
  }
  ASSERT_EQ(ports.size(), 1U);
  EXPECT_TRUE(port_answers(std::stoi(*ports.begin())));
  EXPECT_EQ(ids.size(), 1U);
  EXPECT_GT(ids.begin()->size(), 8U);
  EXPECT_EQ(error_files.size(), 3U);
  const fs::path folder = fs::path(*error_files.begin()).parent_path();
  EXPECT_EQ(fs::status(folder).permissions(), fs::perms::owner_all);
  run.directory().write("go", "");
  EXPECT_EQ(run.wait(), kExitOk);
  EXPECT_FALSE(fs::exists(folder));
}

TEST(LaunchedRanks, TwoRunsHaveDifferentIdsAndPorts) {
  const std::string script = "echo $TORCHELASTIC_RUN_ID $MASTER_PORT >id.tmp; mv id.tmp id-0; " + kWait;
  Launched one(script), other(script);
  ASSERT_TRUE(one.await_each("id", 1) && other.await_each("id", 1));
  std::istringstream a(one.file("id-0")), b(other.file("id-0"));
  std::string id_a, id_b, port_a, port_b;
  a >> id_a >> port_a;
  b >> id_b >> port_b;
  EXPECT_NE(id_a, id_b);
  EXPECT_NE(port_a, port_b);
  for (Launched* run : {&one, &other}) {  // a launcher that is killed could not end a shell that waits
    run->send(SIGTERM);
    run->wait();
  }
}

struct Ends {
  const char* name;
  const char* script;
  int code;
};

class ExitCode : public ::testing::TestWithParam<Ends> {};

TEST_P(ExitCode, IsThatOfTheRun) {
  Launched run(kFail + GetParam().script, ranks(3));
  EXPECT_EQ(run.wait(), GetParam().code) << run.err();
}

INSTANTIATE_TEST_SUITE_P(
    LaunchedRanks, ExitCode,
    ::testing::Values(Ends{"AllDone", "exit 0", kExitOk}, Ends{"AllStopped", "exit 4", kExitResumable},
                      Ends{"SomeStoppedSomeDone", "[ $RANK = 1 ] && exit 4; exit 0", kExitResumable},
                      Ends{"BadInput", "fail wrong 2", kExitBadInput},
                      Ends{"OneFailed", "[ $RANK = 2 ] && exit 1; exec sleep 60", kExitFailure},
                      Ends{"OneFailedOneStopped", "[ $RANK = 2 ] && fail x 3; exit 4", kExitEnvironment},
                      Ends{"OneKilled", "[ $RANK = 0 ] && kill -9 $$; exec sleep 60", kExitEnvironment}),
    [](const auto& info) { return info.param.name; });

TEST(LaunchedRanks, AProgramThatDoesNotStartIsNamed) {
  Launched run("/nowhere/satune", {}, ranks(2));
  EXPECT_EQ(run.wait(), Launched::kThrown);
  EXPECT_THAT(run.log(), AllOf(HasSubstr("/nowhere/satune"), HasSubstr("No such file")));
}

TEST(FirstCause, IsTheKilledRankNotTheOneThatMissesIt) {
  Launched run(kFail + R"(
    if [ $RANK = 2 ]; then echo $$ >pid.tmp; mv pid.tmp pid; sleep 0.2; kill -9 $$; fi
    trap '' TERM
    while [ ! -e pid ]; do sleep 0.01; done
    while kill -0 $(cat pid) 2>/dev/null; do sleep 0.01; done
    fail "rank 2 was lost in step 7" 3)",
               ranks(3));
  EXPECT_EQ(run.wait(), kExitEnvironment);
  EXPECT_THAT(run.err(), HasSubstr("\nsatune: error: rank 2: killed by SIGKILL\n")) << "and it comes last";
  EXPECT_EQ(count_of("satune: error: ", run.err()), 1U) << run.err();
  EXPECT_THAT(run.err(), HasSubstr("[rank 0] rank 2 was lost in step 7\n"));
}

TEST(FirstCause, IsTheRankThatFailedFirstAlthoughItEndsLast) {
  Launched run(kFail + R"(
    if [ $RANK = 1 ]; then trap '' TERM; (fail "disk full" 7); sleep 0.5; exit 7; fi
    while [ ! -s "${TORCHELASTIC_ERROR_FILE%0.json}1.json" ]; do sleep 0.01; done
    sleep 0.05
    fail "rank 1 has failed" 3)",
               ranks(2));
  EXPECT_EQ(run.wait(), 7);
  EXPECT_THAT(run.err(), HasSubstr("satune: error: rank 1: disk full\n"));
}

TEST(FirstCause, WithoutAMessageNamesTheExitCode) {
  Launched run("[ $RANK = 1 ] && exit 5; exec sleep 60", ranks(2));
  EXPECT_EQ(run.wait(), 5);
  EXPECT_EQ(run.err(), "satune: error: rank 1: exit code 5 without a message\n");
}

TEST(FirstCause, OneMessageOfAllRanksIsPrintedOnce) {
  Launched run(kFail + "fail 'train_file: found nothing' 2", ranks(4));
  EXPECT_EQ(run.wait(), kExitBadInput);
  EXPECT_EQ(count_of("train_file: found nothing", run.err()), 1U) << run.err();
}

// Ranks that count their signals: each in a file of its own.
const std::string kCountSignals = R"(
    trap 'echo x >>usr1-$RANK' USR1
    trap 'echo x >>int-$RANK' INT
    trap 'echo x >>term-$RANK; exit 4' TERM
    touch ready-$RANK
)" + kWait;

TEST(Signals, GoToEveryRankAsOftenAsTheyCome) {
  Launched run(kCountSignals, ranks(3));
  ASSERT_TRUE(run.await_each("ready", 3));
  run.send(SIGUSR1);
  ASSERT_TRUE(run.await_each("usr1", 3));
  run.send(SIGUSR1);
  ASSERT_TRUE(await([&] { return run.file("usr1-2") == "x\nx\n" && run.file("usr1-0") == "x\nx\n"; }));
  run.send(SIGINT);
  ASSERT_TRUE(run.await_each("int", 3));
  run.send(SIGTERM);
  EXPECT_EQ(run.wait(), kExitResumable);
  for (const std::string rank : {"0", "1", "2"}) {
    EXPECT_EQ(run.file("usr1-" + rank), "x\nx\n");
    EXPECT_EQ(run.file("int-" + rank), "x\n");
    EXPECT_EQ(run.file("term-" + rank), "x\n");
  }
  EXPECT_EQ(run.err(), "");
}

// Ctrl-C reaches the whole process group of the terminal.
TEST(Signals, OfATerminalComeOnce) {
  int terminal = -1, other_end = -1;
  ASSERT_EQ(::openpty(&terminal, &other_end, nullptr, nullptr, nullptr), 0);
  Launched run(kCountSignals, ranks(2), [&] {
    ::setsid();
    ::ioctl(other_end, TIOCSCTTY, 0);
  });
  ASSERT_TRUE(run.await_each("ready", 2));
  ASSERT_EQ(::write(terminal, "\003", 1), 1);
  ASSERT_TRUE(run.await_each("int", 2));
  ASSERT_EQ(::write(terminal, "\003", 1), 1);
  ASSERT_TRUE(await([&] { return run.file("int-0").size() >= 4 && run.file("int-1").size() >= 4; }));
  run.send(SIGTERM);
  EXPECT_EQ(run.wait(), kExitResumable);
  for (const std::string rank : {"0", "1"}) EXPECT_EQ(run.file("int-" + rank), "x\nx\n");
  ::close(terminal);
  ::close(other_end);
}

TEST(Signals, ThatEndRanksAtOnceAreAStopAndNoFailure) {
  Launched run("touch ready-$RANK; exec sleep 60", ranks(2, /*max_restarts=*/3));
  ASSERT_TRUE(run.await_each("ready", 2));
  run.send(SIGTERM);
  EXPECT_EQ(run.wait(), kExitResumable);
  EXPECT_THAT(run.log(), AllOf(HasSubstr("rank 1 was ended by SIGTERM"), Not(HasSubstr("restart"))));
}

TEST(Signals, ASecondOneThatEndsARankIsNoOrderlyStop) {
  Launched run("trap 'touch stopping-$RANK; trap - INT' INT\ntouch ready-$RANK\n" + kWait, ranks(2));
  ASSERT_TRUE(run.await_each("ready", 2));
  run.send(SIGINT);
  ASSERT_TRUE(run.await_each("stopping", 2));
  run.send(SIGINT);
  EXPECT_EQ(run.wait(), Launched::kKilled);
}

// One that hangs before it has its handlers. (A shell would unblock them.)
TEST(Signals, AThirdStopKillsARankThatTakesNone) {
  LaunchOptions options = ranks(2);
  options.signals_when_ready = true;
  Launched run("/bin/sleep", {"60"}, options);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  for (const int signal : {SIGTERM, SIGINT}) {
    run.send(signal);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    EXPECT_TRUE(run.running());
  }
  run.send(SIGTERM);
  EXPECT_EQ(run.wait(), Launched::kKilled);
}

// The grace is for ranks that outlive a failed one. Ranks that were asked to stop save as long as it takes.
TEST(Ending, AStopHasNoDeadline) {
  Launched run("trap 'sleep 1.5; touch saved-$RANK; exit 4' TERM\ntouch ready-$RANK\n" + kWait,
               ranks(2, 0, /*grace_seconds=*/0.2));
  ASSERT_TRUE(run.await_each("ready", 2));
  run.send(SIGTERM);
  EXPECT_EQ(run.wait(), kExitResumable);
  EXPECT_TRUE(run.has("saved-0") && run.has("saved-1"));
}

TEST(Ending, OthersAreToldAndThenKilled) {
  Launched run(kFail + R"(
    [ $RANK = 1 ] && trap 'touch told; exit 4' TERM
    [ $RANK = 2 ] && trap '' TERM
    touch ready-$RANK
    if [ $RANK = 0 ]; then while [ ! -e ready-1 ] || [ ! -e ready-2 ]; do sleep 0.01; done; fail broken 1; fi
)" + kWait,
               ranks(3, 0, /*grace_seconds=*/0.4));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run.wait(), kExitFailure);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
  EXPECT_TRUE(run.has("told"));
  EXPECT_THAT(run.log(), HasSubstr("rank 2 has not ended within 0.4 s"));
  EXPECT_EQ(run.err(), "satune: error: rank 0: broken\n");
}

// Rank 1 stops itself; the other goes on once it has.
const std::string kStopped = R"(
    if [ $RANK = 1 ]; then echo $$ >id.tmp; mv id.tmp id; kill -STOP $$; fi
    until grep -qs '^State:.T' /proc/$(cat id 2>/dev/null || echo 0)/status; do sleep 0.01; done
)";

TEST(Ending, AStoppedRankIsKilledAtOnce) {
  Launched run(kFail + kStopped + "fail broken 1\n", ranks(2, 0, /*grace_seconds=*/60));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run.wait(), kExitFailure);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_THAT(run.log(), HasSubstr("rank 1 is stopped (SIGSTOP) and cannot end by itself: it is killed"));
  EXPECT_EQ(run.err(), "satune: error: rank 0: broken\n");
}

// What a rank does that is asked to stop and finds another one lost.
TEST(Ending, AStopThatCannotSaveEndsTheRankThatIsMissed) {
  Launched run(kFail + kStopped + "trap 'fail \"rank 1 is lost\" 4' TERM\ntouch ready-0\n" + kWait,
               ranks(2, /*max_restarts=*/3, /*grace_seconds=*/60));
  ASSERT_TRUE(run.await_each("ready", 1));
  const auto start = std::chrono::steady_clock::now();
  run.send(SIGTERM);
  EXPECT_EQ(run.wait(), kExitResumable);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_THAT(run.log(), AllOf(HasSubstr("rank 0: rank 1 is lost: the other ranks are told to end"),
                               HasSubstr("rank 1 is stopped"), Not(HasSubstr("restart"))));
}

TEST(Restarts, StartAllRanksAgainUntilTheyAreUsedUp) {
  const std::string script = kFail +
                             "touch run-$RANK-$TORCHELASTIC_RESTART_COUNT; [ $RANK = 1 ] && fail \"attempt "
                             "$TORCHELASTIC_RESTART_COUNT\" 1; exec sleep 60";
  Launched run(script, ranks(2, 2));
  EXPECT_EQ(run.wait(), kExitFailure);
  for (const char* name : {"run-0-0", "run-0-1", "run-0-2", "run-1-2"}) EXPECT_TRUE(run.has(name)) << name;
  EXPECT_FALSE(run.has("run-0-3"));
  EXPECT_THAT(run.log(), AllOf(HasSubstr("restart 1 of 2 after: rank 1: attempt 0\n"),
                               HasSubstr("restart 2 of 2 after: rank 1: attempt 1\n")));
  EXPECT_EQ(run.err(), "satune: error: rank 1: attempt 2\n");
}

TEST(Restarts, AfterAKilledRankLeadToAFinishedRun) {
  Launched run(
      "[ $RANK$TORCHELASTIC_RESTART_COUNT = 00 ] && kill -9 $$; echo $MASTER_PORT >>ports; "
      "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exec sleep 60",
      ranks(2, 5));
  EXPECT_EQ(run.wait(), kExitOk);
  EXPECT_EQ(run.err(), "") << "an attempt that was made good is no error";
  EXPECT_EQ(count_of("restart ", run.log()), 1U);
  std::istringstream ports(run.file("ports"));
  std::set<std::string> different;
  for (std::string port; ports >> port;) different.insert(port);
  EXPECT_EQ(different.size(), 1U) << "one store for all attempts";
}

TEST(Restarts, AreNotForBadInputNorForStops) {
  Launched wrong(kFail + "fail wrong 2", ranks(2, 3));
  EXPECT_EQ(wrong.wait(), kExitBadInput);
  EXPECT_THAT(wrong.log(), Not(HasSubstr("restart")));
  Launched stopped("exit 4", ranks(2, 3));
  EXPECT_EQ(stopped.wait(), kExitResumable);
  EXPECT_EQ(stopped.log(), "");
  // The save that a stop asks for may fail: that is said, and the stop stays a stop.
  Launched failing(kFail + "trap 'fail full 3' TERM; touch ready-$RANK; " + kWait, ranks(2, 3));
  ASSERT_TRUE(failing.await_each("ready", 2));
  failing.send(SIGTERM);
  EXPECT_EQ(failing.wait(), kExitEnvironment);
  EXPECT_THAT(failing.log(), Not(HasSubstr("restart")));
}

TEST(Output, OfRankZeroPassesAndOthersGetWholePrefixedLines) {
  Launched run(R"(
    if [ $RANK = 0 ]; then printf 'to stdout'; printf 'to stderr' >&2; while [ ! -e done-2 ]; do sleep 0.01; done
    else for i in 1 2 3; do printf "line $i "; sleep 0.05; printf "of $RANK\n" >&2; done; printf "rest of $RANK"
    touch done-$RANK; fi)",
               ranks(3));
  EXPECT_EQ(run.wait(), kExitOk);
  EXPECT_EQ(run.out(), "to stdout");
  std::string text = run.err();
  ASSERT_EQ(text.rfind("to stderr", 0), 0U) << text;
  std::multiset<std::string> lines;
  std::istringstream stream(text.substr(9));
  for (std::string line; std::getline(stream, line);) lines.insert(line);
  EXPECT_EQ(lines, (std::multiset<std::string>{"[rank 1] line 1 of 1", "[rank 1] line 2 of 1",
                                               "[rank 1] line 3 of 1", "[rank 1] rest of 1",
                                               "[rank 2] line 1 of 2", "[rank 2] line 2 of 2",
                                               "[rank 2] line 3 of 2", "[rank 2] rest of 2"}));
  EXPECT_EQ(text.back(), '\n');
}

TEST(Output, OfAnySizeIsDrained) {
  Launched run("[ $RANK = 0 ] || seq 200000", ranks(2));
  EXPECT_EQ(run.wait(), kExitOk);
  const std::string text = run.err();
  EXPECT_EQ(count_of("[rank 1] ", text), 200000U);
  EXPECT_TRUE(text.ends_with("[rank 1] 200000\n"));
}

TEST(Output, HeldOpenByAProcessLeftBehindIsNotWaitedFor) {
  Launched run("sleep 30 & echo $! >left-$RANK; echo said", ranks(2));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run.wait(), kExitOk);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
  EXPECT_EQ(run.err(), "[rank 1] said\n");
  for (const char* name : {"left-0", "left-1"}) ::kill(std::stoi(run.file(name)), SIGKILL);
}

TEST(Waiting, TakesNoProcessorTime) {
  Launched run("exec sleep 3", ranks(2));  // more than two seconds of processor time would show
  EXPECT_EQ(run.wait(), kExitOk);
}

/// Ranks that are satune itself, held up at reading their config from a pipe that nobody writes to.
class HeldProgram {
 public:
  HeldProgram() {
    // Others who open it wait, while we have a lease and do not answer: for 45 s (fs.lease-break-time).
    std::signal(SIGIO, SIG_IGN);
    config_ = Descriptor(::open(config().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    leased_ = ::fcntl(config_.get(), F_SETLEASE, F_WRLCK) == 0;
    if (!leased_) return;
    run_ = std::make_unique<Launched>(SATUNE_PROGRAM, std::vector<std::string>{"train", config()}, ranks(2));
  }
  bool leased() const { return leased_; }
  Launched& run() { return *run_; }

  /// Ids of the processes that have our config as their argument.
  std::vector<pid_t> processes() const {
    std::vector<pid_t> found;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename().string();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      if (process_file(name, "cmdline").find(config()) != std::string::npos) found.push_back(std::stoi(name));
    }
    return found;
  }
  /// Both have got as far as opening the config.
  bool held() const {
    const auto ids = processes();
    return ids.size() == 2 && std::all_of(ids.begin(), ids.end(), [](pid_t id) {
             return process_file(std::to_string(id), "wchan").find("break_lease") != std::string::npos;
           });
  }

 private:
  std::string config() const { return (directory_ / "config.json").string(); }

  TemporaryDirectory directory_;
  Descriptor config_;
  bool leased_ = false;
  std::unique_ptr<Launched> run_;
};

TEST(LauncherKilled, RanksEndWithIt) {
  HeldProgram program;
  if (!program.leased()) GTEST_SKIP() << "no file leases here";
  ASSERT_TRUE(await([&] { return program.processes().size() == 2; }));
  const auto ids = program.processes();
  await([&] { return program.held(); });  // where the kernel does not tell, long enough to load LibTorch
  program.run().send(SIGKILL);
  EXPECT_EQ(program.run().wait(), -SIGKILL);
  EXPECT_TRUE(await([&] { return !alive(ids[0]) && !alive(ids[1]); }));
}

TEST(LauncherKilled, BeforeTheRanksCouldKnow) {
  HeldProgram program;
  if (!program.leased()) GTEST_SKIP() << "no file leases here";
  ASSERT_TRUE(await([&] { return program.processes().size() == 2; }));
  const auto ids = program.processes();
  program.run().send(SIGKILL);  // while they load their libraries
  EXPECT_EQ(program.run().wait(), -SIGKILL);
  EXPECT_TRUE(await([&] { return !alive(ids[0]) && !alive(ids[1]); }));
}

}  // namespace
}  // namespace satune::trainer_test
