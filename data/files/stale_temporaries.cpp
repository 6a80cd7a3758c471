#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>

#include "data/files/atomic_file.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

// The PID of ".NAME.tmp-PID".
std::optional<pid_t> owner_of(std::string_view name) {
  const size_t mark = name.rfind(".tmp-");
  if (!name.starts_with('.') || mark == std::string_view::npos || mark < 2) return std::nullopt;
  const std::string_view digits = name.substr(mark + 5);
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), pid);
  if (error != std::errc() || end != digits.data() + digits.size() || pid <= 0) return std::nullopt;
  return pid;
}

// Seconds since the process began (proc(5): field 22 of stat, in clock ticks since boot).
std::optional<double> age_of_process(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  // Field 2, the program's name, may hold spaces and brackets; field 3 follows its last bracket.
  const size_t bracket = line.rfind(')');
  if (bracket == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(bracket + 1));
  std::string field;
  for (int index = 3; index <= 22; ++index) fields >> field;
  unsigned long long ticks = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), ticks);
  timespec since_boot{};
  if (error != std::errc() || ::clock_gettime(CLOCK_BOOTTIME, &since_boot) != 0) return std::nullopt;
  return static_cast<double>(since_boot.tv_sec) -
         static_cast<double>(ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

bool is_stale(const fs::path& path, pid_t pid) {
  if (pid == ::getpid()) return true;
  if (::kill(pid, 0) != 0 && errno == ESRCH) return true;
  const std::optional<double> process_age = age_of_process(pid);
  struct stat status {};
  if (!process_age || ::lstat(path.c_str(), &status) != 0) return false;
  constexpr double kClockSlack = 5;  // seconds
  return std::difftime(::time(nullptr), status.st_mtime) > *process_age + kClockSlack;
}

template <typename Condition>
void remove_temporaries_if(const fs::path& directory, const Condition& condition) {
  std::error_code ignored;
  for (fs::directory_iterator entry(directory, ignored), end; entry != end; entry.increment(ignored)) {
    const std::optional<pid_t> pid = owner_of(entry->path().filename().string());
    if (pid && condition(entry->path(), *pid)) fs::remove_all(entry->path(), ignored);
  }
}

}  // namespace

void remove_stale_temporaries(const fs::path& directory) {
  remove_temporaries_if(directory, is_stale);
}

void remove_temporaries(const fs::path& directory) {
  remove_temporaries_if(directory, [](const fs::path&, pid_t) { return true; });
}

}  // namespace satune
