#include "trainer/process_identity.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>

#include "trainer/descriptor.h"

namespace satune {
namespace {

struct ProcessStat {
  char state = 0;
  int64_t start_time = 0;
};

/// The line in /proc/PID/stat; "" and errno where it cannot be read.
std::string stat_line(int64_t pid) {
  errno = 0;
  const Descriptor file(::open(fmt::format("/proc/{}/stat", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) return "";
  std::array<char, 4096> line;  // some 50 numbers and a name of at most 64 bytes
  ssize_t size = 0;
  do size = ::read(file.get(), line.data(), line.size());
  while (size < 0 && errno == EINTR);
  return {line.data(), static_cast<size_t>(std::max<ssize_t>(size, 0))};
}

/// The process has ended. Any other error tells of this process: no descriptors left, no memory.
bool means_gone(int error) {
  return error == ENOENT || error == ESRCH;
}

// Fields of /proc/PID/stat, see proc(5). The second one, the name, may hold spaces and parentheses: counting
// starts after its last one.
std::optional<ProcessStat> parse_stat(const std::string& line) {
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  constexpr int kStateField = 3, kStartTimeField = 22;
  ProcessStat stat;
  fields >> stat.state;
  std::string skipped;
  for (int field = kStateField + 1; field < kStartTimeField; ++field) fields >> skipped;
  if (!(fields >> stat.start_time)) return std::nullopt;
  return stat;
}

std::string machine_of_this_process() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot_id;
  std::array<char, PATH_MAX> name_space;
  const ssize_t length = readlink("/proc/self/ns/pid", name_space.data(), name_space.size());
  if (!std::getline(file, boot_id) || length <= 0) return "";
  return boot_id + " " + std::string(name_space.data(), static_cast<size_t>(length));
}

}  // namespace

ProcessIdentity this_process() {
  ProcessIdentity process;
  std::array<char, HOST_NAME_MAX + 1> name = {};
  process.host = gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
  process.pid = getpid();
  if (const auto stat = parse_stat(stat_line(process.pid))) {
    process.machine = machine_of_this_process();
    process.start_time = stat->start_time;
  }
  return process;
}

ProcessState state_of(const ProcessIdentity& process, const std::string& here) {
  if (process.machine.empty() || process.machine != here) return ProcessState::kElsewhere;
  const std::string line = stat_line(process.pid);
  if (line.empty()) return means_gone(errno) ? ProcessState::kGone : ProcessState::kElsewhere;
  const auto stat = parse_stat(line);
  if (!stat) return ProcessState::kElsewhere;
  if (stat->start_time != process.start_time) return ProcessState::kGone;
  switch (stat->state) {
    case 'Z':
    case 'X':
      return ProcessState::kGone;
    case 'T':
    case 't':
      return ProcessState::kStopped;
    default:
      return ProcessState::kRunning;
  }
}

}  // namespace satune
