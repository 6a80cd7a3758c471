// launch_ranks() in a process of its own, which tests can signal, kill and listen to.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/temporary_directory.h"
#include "trainer/launcher.h"

namespace satune::trainer_test {

/// Waits until `met` holds; false when it does not within 20 s.
inline bool await(const std::function<bool()>& met) {
  for (int i = 0; i < 4000; ++i) {
    if (met()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

class Launched {
 public:
  static constexpr int kKilled = 96, kThrown = 97, kChildrenLeft = 98, kBusy = 99;

  /// `before` runs first in the new process.
  Launched(const std::string& program, const std::vector<std::string>& arguments, LaunchOptions options,
           const std::function<void()>& before = {}) {
    id_ = ::fork();
    if (id_ == 0) ::_exit(run(program, arguments, options, before));
  }
  /// Ranks that run `script` in the test's folder.
  explicit Launched(const std::string& script, LaunchOptions options = {},
                    const std::function<void()>& before = {})
      : Launched("/bin/sh", {"-c", script}, std::move(options), before) {}
  ~Launched() {
    if (id_ > 0) {
      send(SIGKILL);
      wait();
    }
  }
  Launched(const Launched&) = delete;
  Launched& operator=(const Launched&) = delete;

  const TemporaryDirectory& directory() const { return directory_; }
  std::string file(std::string_view name) const { return content_of(directory_ / name); }
  bool has(std::string_view name) const { return std::filesystem::exists(directory_ / name); }
  /// Waits for a file that each of `count` ranks makes: name + "-" + RANK.
  bool await_each(const std::string& name, int count) const {
    return await([&] {
      for (int rank = 0; rank < count; ++rank) {
        if (!has(name + "-" + std::to_string(rank))) return false;
      }
      return true;
    });
  }

  void send(int signal) const { ::kill(id_, signal); }
  bool running() const {
    siginfo_t info = {};
    ::waitid(P_PID, static_cast<id_t>(id_), &info, WEXITED | WNOHANG | WNOWAIT);
    return info.si_pid == 0;
  }
  /// Exit code, or minus the signal.
  int wait() {
    int status = 0;
    ::waitpid(id_, &status, 0);
    id_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::string out() const { return file("out"); }
  std::string err() const { return file("err"); }
  std::string log() const { return file("log"); }

 private:
  int run(const std::string& program, const std::vector<std::string>& arguments, const LaunchOptions& options,
          const std::function<void()>& before) {
    std::filesystem::current_path(directory_.path());
    redirect(STDOUT_FILENO, "out");
    redirect(STDERR_FILENO, "err");
    spdlog::set_default_logger(spdlog::basic_logger_st("launched", (directory_ / "log").string()));
    spdlog::set_pattern("%v");
    spdlog::flush_on(spdlog::level::trace);
    try {
      if (before) before();
      const LaunchEnd end = launch_ranks(program, arguments, options);
      const int code = end.killed ? kKilled : end.exit_code;
      if (::waitpid(-1, nullptr, WNOHANG) != -1 || errno != ECHILD) return kChildrenLeft;
      rusage used{};
      ::getrusage(RUSAGE_SELF, &used);
      return used.ru_utime.tv_sec + used.ru_stime.tv_sec > 1 ? kBusy : code;
    } catch (const std::exception& error) {
      spdlog::error("{}", error.what());
      return kThrown;
    }
  }
  static void redirect(int fd, const char* name) {
    const int file = ::open(name, O_WRONLY | O_CREAT | O_APPEND, 0666);
    ::dup2(file, fd);
    ::close(file);
  }

  TemporaryDirectory directory_;
  pid_t id_ = 0;
};

}  // namespace satune::trainer_test
