#include "trainer/launcher.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>

#include "data/files/error.h"
#include "trainer/descriptor.h"
#include "trainer/failure_report.h"
#include "trainer/parent_death.h"
#include "trainer/process_identity.h"
#include "trainer/rank_supervision.h"
#include "trainer/run_store.h"
#include "trainer/visible_cards.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

// The machine in it: where a temporary folder is shared, a lock may be of one machine.
std::string private_folder_prefix() {
  return fmt::format("satune-ranks-{}-", this_process().host);
}

// A folder for the ranks' error files that others cannot read, gone with the object. Those of launchers that
// were killed go when the next one comes.
class PrivateFolder {
 public:
  PrivateFolder() {
    std::error_code error;
    const fs::path parent = fs::temp_directory_path(error);
    if (!error) remove_abandoned(parent);
    std::string pattern = (parent / (private_folder_prefix() + "XXXXXX")).string();
    if (error || ::mkdtemp(pattern.data()) == nullptr) {
      throw EnvironmentError(fmt::format("{}: a temporary folder cannot be made: {}", pattern,
                                         error ? error.message() : std::strerror(errno)));
    }
    path_ = pattern;
    lock_ = lock(path_);
  }
  ~PrivateFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  // Held until the process ends, however it does. Empty where another holds it.
  static Descriptor lock(const fs::path& folder) {
    Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (descriptor.is_open() && ::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0) descriptor.reset();
    return descriptor;
  }

  static void remove_abandoned(const fs::path& parent) {
    constexpr double kSecondsUntilLocked = 60;
    const std::string prefix = private_folder_prefix();
    std::error_code ignored;
    for (fs::directory_iterator entry(parent, ignored), end; entry != end; entry.increment(ignored)) {
      const fs::path folder = entry->path();
      struct stat status {};
      if (!folder.filename().string().starts_with(prefix) || ::lstat(folder.c_str(), &status) != 0 ||
          status.st_uid != ::geteuid() ||
          std::difftime(::time(nullptr), status.st_mtime) < kSecondsUntilLocked)
        continue;
      if (lock(folder).is_open()) fs::remove_all(folder, ignored);
    }
  }

  fs::path path_;
  Descriptor lock_;
};

std::string unique_run_id() {
  std::random_device random;
  return fmt::format("satune-{}-{:08x}{:08x}", ::getpid(), random(), random());
}

// Variables that the user has not set himself.
std::vector<std::string> defaults_not_set(const std::vector<std::string>& assignments) {
  std::vector<std::string> left;
  std::copy_if(assignments.begin(), assignments.end(), std::back_inserter(left), [](const std::string& text) {
    return std::getenv(text.substr(0, text.find('=')).c_str()) == nullptr;
  });
  return left;
}

std::vector<std::string> rank_variables(int64_t rank, int64_t attempt, const LaunchOptions& options,
                                        uint16_t port, const std::string& run_id,
                                        const fs::path& error_file) {
  std::vector<std::string> variables = defaults_not_set(options.default_environment);
  const auto set = [&](const char* name, const auto& value) {
    variables.push_back(fmt::format("{}={}", name, value));
  };
  set("RANK", rank);
  set("LOCAL_RANK", rank);
  set("WORLD_SIZE", options.processes);
  set("LOCAL_WORLD_SIZE", options.processes);
  set("MASTER_ADDR", "127.0.0.1");
  set("MASTER_PORT", port);
  set("TORCHELASTIC_USE_AGENT_STORE", "True");
  set("TORCHELASTIC_RESTART_COUNT", attempt);
  set("TORCHELASTIC_RUN_ID", run_id);
  set("TORCHELASTIC_ERROR_FILE", error_file.string());
  set(kLauncherVariable, ::getpid());
  return variables;
}

// The cause in the form of every error of the program, and before it what the others say: where they were.
void report(const std::vector<RankFailure>& failures, const RankFailure& cause) {
  for (const RankFailure& failure : failures) {
    // "rank 0 (...) failed: CAUSE" says no more.
    if (&failure == &cause || reason(failure).ends_with(reason(cause))) continue;
    write_all(STDERR_FILENO, fmt::format("[rank {}] {}\n", failure.rank, reason(failure)));
  }
  print_error(named_reason(cause));
}

// A SIGHUP that nohup has ignored would come all the same: what is blocked for reading is not discarded.
std::vector<int> signals_to_read() {
  std::vector<int> signals = {SIGCHLD, SIGTERM, SIGINT, SIGUSR1};
  struct sigaction hangup = {};
  ::sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) signals.push_back(SIGHUP);
  return signals;
}

bool may_pass(const RankFailure& cause) {
  return exit_code_of(cause) != kExitBadInput;
}

}  // namespace

LaunchEnd launch_ranks(const std::string& program, const std::vector<std::string>& arguments,
                       const LaunchOptions& options) {
  std::signal(SIGCHLD, SIG_DFL);  // where a parent ignored it, exit codes would be lost
  std::signal(SIGPIPE, SIG_IGN);  // output that nobody reads any more ends no run
  SignalEvents signals(signals_to_read());
  const auto store = open_store_server(0);
  const PrivateFolder folder;
  const std::string run_id = unique_run_id();
  for (int64_t attempt = 0;; ++attempt) {
    RankStart start;
    start.program = program;
    start.arguments = arguments;
    start.processes = options.processes;
    start.grace_seconds = options.grace_seconds;
    start.signals_when_ready = options.signals_when_ready;
    start.error_file = [&](int64_t rank) { return folder.path() / fmt::format("{}-{}.json", attempt, rank); };
    start.environment = [&](int64_t rank) {
      return rank_variables(rank, attempt, options, store->port(), run_id, start.error_file(rank));
    };
    RankSupervision ranks(start, signals);
    ranks.run();
    if (ranks.failures().empty())
      return {ranks.stopped() ? kExitResumable : kExitOk, ranks.stop_signal(), ranks.killed_by_stop()};
    const RankFailure& cause = first_cause(ranks.failures());
    if (attempt == options.max_restarts || ranks.stopped() || !may_pass(cause)) {
      report(ranks.failures(), cause);
      return {exit_code_of(cause), ranks.stop_signal()};
    }
    spdlog::warn("restart {} of {} after: {}", attempt + 1, options.max_restarts, named_reason(cause));
  }
}

int64_t default_process_count() {
  return std::max<int64_t>(1, count_visible_cards());
}

}  // namespace satune
