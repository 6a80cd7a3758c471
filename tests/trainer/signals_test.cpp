// Whom a process listens to that is asked to stop: its parent, a stranger, both.
#include "trainer/signals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>

#include "data/files/error.h"
#include "tests/temporary_directory.h"

namespace satune::trainer_test {
namespace {

/// A process with a SignalWatch that leaves with exit code 0 once it is sent SIGUSR1. We are its parent.
class Watching {
 public:
  explicit Watching(bool deferring = true, const std::string& stopped_file = "") {
    int ready[2];
    if (::pipe(ready) != 0) throw std::runtime_error("pipe");
    id_ = ::fork();
    if (id_ == 0) ::_exit(watch(deferring, stopped_file, ready[1]));
    char byte = 0;
    if (::read(ready[0], &byte, 1) != 1) throw std::runtime_error("the process did not start");
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~Watching() {
    if (id_ > 0) {
      ::kill(id_, SIGKILL);
      wait();
    }
  }
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;

  /// Both wait until the signal has been handled: the next one must not melt into it.
  Watching& from_parent(int signal) {
    ::kill(id_, signal);
    return settle();
  }
  Watching& from_stranger(int signal) {
    const pid_t stranger = ::fork();
    if (stranger == 0) ::_exit(::kill(id_, signal));
    ::waitpid(stranger, nullptr, 0);
    return settle();
  }
  /// Exit code, or minus the signal.
  int wait() {
    int status = 0;
    ::waitpid(id_, &status, 0);
    id_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int leave() {
    ::kill(id_, SIGUSR1);
    return wait();
  }

 private:
  static int watch(bool deferring, const std::string& stopped_file, int ready) {
    SignalWatch signals(stopped_file);
    if (deferring) signals.defer_stop();
    if (::write(ready, "x", 1) != 1) return 1;
    while (!signals.take_save_request()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return signals.stop_requested() ? kExitOk : kExitFailure;
  }
  Watching& settle() {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return *this;
  }

  pid_t id_ = 0;
};

TEST(SecondSignal, EndsTheProcess) {
  EXPECT_EQ(Watching().from_parent(SIGTERM).leave(), kExitOk);
  EXPECT_EQ(Watching().from_parent(SIGTERM).from_parent(SIGTERM).wait(), -SIGTERM);
  EXPECT_EQ(Watching().from_stranger(SIGTERM).from_stranger(SIGINT).wait(), -SIGINT);
}

TEST(SecondSignal, FromALauncherBesideItsSchedulerIsTheFirst) {
  EXPECT_EQ(Watching().from_parent(SIGTERM).from_stranger(SIGTERM).leave(), kExitOk);
  EXPECT_EQ(Watching().from_stranger(SIGTERM).from_parent(SIGTERM).leave(), kExitOk);
  EXPECT_EQ(Watching().from_stranger(SIGTERM).from_parent(SIGTERM).from_parent(SIGTERM).wait(), -SIGTERM);
  EXPECT_EQ(Watching().from_stranger(SIGTERM).from_parent(SIGTERM).from_stranger(SIGTERM).wait(), -SIGTERM);
}

TEST(FirstSignal, MayBeThatOfAClosedTerminal) {
  EXPECT_EQ(Watching().from_parent(SIGHUP).leave(), kExitOk);
  struct sigaction ignoring = {}, previous = {};
  ignoring.sa_handler = SIG_IGN;
  sigaction(SIGHUP, &ignoring, &previous);  // as nohup starts a program
  EXPECT_EQ(Watching(/*deferring=*/false).from_parent(SIGHUP).leave(), kExitFailure);
  sigaction(SIGHUP, &previous, nullptr);
}

TEST(FirstSignal, IsNotThatOfALogThatNobodyReads) {
  EXPECT_EQ(Watching(/*deferring=*/false).from_parent(SIGPIPE).leave(), kExitFailure);
}

TEST(FirstSignal, EndsAProcessThatHasNothingToSave) {
  EXPECT_EQ(Watching(/*deferring=*/false).from_parent(SIGTERM).wait(), kExitResumable);
}

TEST(FirstSignal, JustBeforeNothingIsDeferredAnyMoreEndsTheProcessAlike) {
  const TemporaryDirectory directory;
  const std::string file = (directory / "stopped").string();
  const auto stopped_late = [](const std::string& stopped_file) {
    SignalWatch signals(stopped_file);
    signals.defer_stop();
    raise(SIGTERM);
    signals.end_at_once();
  };
  EXPECT_EXIT(stopped_late(""), ::testing::ExitedWithCode(kExitResumable), "");
  EXPECT_EXIT(stopped_late(file), ::testing::ExitedWithCode(kExitOk), "");
  EXPECT_TRUE(std::filesystem::exists(file));
}

TEST(FirstSignal, TellsOfTheStopInTheFileThatAScriptNames) {
  const TemporaryDirectory directory;
  const std::string file = (directory / "stopped").string();
  EXPECT_EQ(Watching(/*deferring=*/false, file).from_parent(SIGTERM).wait(), kExitOk);
  EXPECT_TRUE(std::filesystem::exists(file));
  EXPECT_EQ(Watching(/*deferring=*/false, file).from_parent(SIGINT).wait(), kExitOk) << "of several ranks";
  const std::string nowhere = (directory / "missing" / "stopped").string();
  EXPECT_EQ(Watching(/*deferring=*/false, nowhere).from_parent(SIGTERM).wait(), kExitResumable);
}

}  // namespace
}  // namespace satune::trainer_test
