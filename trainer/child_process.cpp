#include "trainer/child_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>

#include "data/files/error.h"

namespace satune {
namespace {

void check(int error, std::string_view action) {
  if (error != 0) throw EnvironmentError(fmt::format("{}: {}", action, std::strerror(error)));
}

class SpawnAttributes {
 public:
  explicit SpawnAttributes(const sigset_t& mask) {
    check(posix_spawnattr_init(&attributes_), "posix_spawn");
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attributes_, 0);
    posix_spawnattr_setsigmask(&attributes_, &mask);
  }
  ~SpawnAttributes() { posix_spawnattr_destroy(&attributes_); }
  SpawnAttributes(const SpawnAttributes&) = delete;
  SpawnAttributes& operator=(const SpawnAttributes&) = delete;
  const posix_spawnattr_t* get() const { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

class SpawnFiles {
 public:
  SpawnFiles() {
    check(posix_spawn_file_actions_init(&actions_), "posix_spawn");
    // A process in the background that reads from the terminal is stopped.
    check(posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0), "posix_spawn");
  }
  ~SpawnFiles() { posix_spawn_file_actions_destroy(&actions_); }
  SpawnFiles(const SpawnFiles&) = delete;
  SpawnFiles& operator=(const SpawnFiles&) = delete;
  void redirect(int from, int to) {
    check(posix_spawn_file_actions_adddup2(&actions_, to, from), "posix_spawn");
  }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

std::string_view name_of(std::string_view assignment) {
  return assignment.substr(0, assignment.find('='));
}

std::vector<std::string> merged_environment(const std::vector<std::string>& replacing) {
  std::vector<std::string> merged = replacing;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const bool replaced = std::any_of(replacing.begin(), replacing.end(), [&](const std::string& assignment) {
      return name_of(assignment) == name_of(*entry);
    });
    if (!replaced) merged.emplace_back(*entry);
  }
  return merged;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers(words.size() + 1, nullptr);
  std::transform(words.begin(), words.end(), pointers.begin(), [](std::string& word) { return word.data(); });
  return pointers;
}

}  // namespace

ChildProcess::ChildProcess(const ProcessStart& start) {
  std::vector<std::string> words = start.arguments, environment = merged_environment(start.environment);
  // Who lists processes should see the name that we were called by.
  words.insert(words.begin(), start.program == "/proc/self/exe" ? program_invocation_name : start.program);
  const SpawnAttributes attributes(start.signal_mask);
  SpawnFiles files;
  Descriptor write_end;
  if (start.capture_output) {
    int ends[2];
    check(::pipe2(ends, O_CLOEXEC) == 0 ? 0 : errno, "pipe");
    output_ = Descriptor(ends[0]);
    write_end = Descriptor(ends[1]);
    ::fcntl(ends[0], F_SETFL, O_NONBLOCK);  // ours alone: the write end stays blocking
    files.redirect(STDOUT_FILENO, ends[1]);
    files.redirect(STDERR_FILENO, ends[1]);
  }
  check(::posix_spawn(&id_, start.program.c_str(), files.get(), attributes.get(), pointers_to(words).data(),
                      pointers_to(environment).data()),
        start.program);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : id_(std::exchange(other.id_, -1)), end_(other.end_), output_(std::move(other.output_)) {}

ChildProcess::~ChildProcess() {
  if (!running()) return;
  kill();
  while (::waitpid(id_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

bool ChildProcess::has_ended() {
  int status = 0;
  if (!running() || ::waitpid(id_, &status, WNOHANG) != id_) return false;
  id_ = -1;
  end_ = WIFSIGNALED(status) ? ProcessEnd{0, WTERMSIG(status)} : ProcessEnd{WEXITSTATUS(status), 0};
  return true;
}

bool ChildProcess::is_stopped() const {
  if (!running()) return false;
  // "ID (NAME) STATE ...", where a name may hold anything.
  std::ifstream file("/proc/" + std::to_string(id_) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t name_end = text.rfind(')');
  return name_end != std::string::npos && text.compare(name_end, 3, ") T") == 0;
}

void ChildProcess::send(int signal) const {
  if (running()) ::kill(id_, signal);
}

void ChildProcess::kill() const {
  if (running()) ::kill(-id_, SIGKILL);
}

std::string signal_name(int signal) {
  const char* name = sigabbrev_np(signal);
  return name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", signal);
}

}  // namespace satune
