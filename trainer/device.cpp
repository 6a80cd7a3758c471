#include "trainer/device.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <malloc.h>
#include <sched.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string_view>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "trainer/card.h"

namespace satune {
namespace {

constexpr int64_t kThreadsPerProcessor = 16, kFewestMostThreads = 256;

/// The number behind `key`, with which a line of the file begins; -1 if there is none.
int64_t number_after(const char* file, std::string_view key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key)) return std::stoll(line.substr(key.size()));
  }
  return -1;
}

/// "VmHWM:   1234 kB" of a file of such lines, in bytes; -1 if it is not there.
int64_t kilobytes_of(const char* file, std::string_view key) {
  const int64_t kilobytes = number_after(file, key);
  return kilobytes < 0 ? -1 : kilobytes * 1024;
}

/// First number of a file; `otherwise` when it is missing or "max".
int64_t number_in(const char* file, int64_t otherwise) {
  std::ifstream stream(file);
  int64_t value = 0;
  return stream >> value ? value : otherwise;
}

/// Of the calling thread for 0.
int64_t processors_of_process(pid_t process) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(process, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

/// The kernel cuts a wish for every processor down to what the control group allows, whatever its version and
/// wherever it is mounted.
int64_t processors_of_control_group() {
  cpu_set_t own, every;
  std::memset(&every, 0xff, sizeof(every));
  if (sched_getaffinity(0, sizeof(own), &own) != 0 || sched_setaffinity(0, sizeof(every), &every) != 0) {
    return processors_of_process(0);
  }
  const int64_t allowed = processors_of_process(0);
  sched_setaffinity(0, sizeof(own), &own);
  return allowed;
}

int64_t card_count() {
  return at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
}

std::string build_id() {
  try {
    const MappedFile program("/proc/self/exe");
    return fmt::format("{:08x}", crc32c(program.bytes()));
  } catch (const BadInput&) {
    return "unknown";
  }
}

}  // namespace

int64_t usable_processors() {
  return processors_of_process(0);
}

int64_t processors_of_rank(int64_t available, int64_t affinity, int64_t local_ranks) {
  const bool bound = affinity * local_ranks <= available;
  return std::max<int64_t>(1, bound ? affinity : affinity / local_ranks);
}

int64_t processors_before_binding() {
  // Neither of these binds, and each is the parent of its ranks.
  if (std::getenv("TORCHELASTIC_RUN_ID") != nullptr) {
    return std::max(usable_processors(), processors_of_process(::getppid()));
  }
  return processors_of_control_group();
}

int64_t operator_threads(const Settings& settings, int64_t local_ranks) {
  if (settings.num_threads) return *settings.num_threads;
  return processors_of_rank(processors_before_binding(), usable_processors(), local_ranks);
}

int64_t operator_threads_unbound(const Settings& settings, int64_t local_ranks) {
  return settings.num_threads.value_or(
      processors_of_rank(usable_processors(), usable_processors(), local_ranks));
}

void use_threads(const Settings& settings, int64_t local_ranks) {
  // LibTorch starts them all at once, and a pool of thousands takes minutes to come up.
  const int64_t processors = usable_processors();
  const int64_t most = std::max<int64_t>(kFewestMostThreads, kThreadsPerProcessor * processors);
  if (settings.num_threads.value_or(1) > most) {
    throw bad_input("num_threads", std::to_string(*settings.num_threads),
                    fmt::format("at most {} with {} usable processors", most, processors));
  }
  at::set_num_threads(static_cast<int>(operator_threads(settings, local_ranks)));
}

int64_t card_of_rank(int64_t visible, int64_t local_rank) {
  return visible == 1 ? 0 : local_rank;
}

at::Device choose_device(DeviceChoice choice, int64_t local_rank) {
  if (choice == DeviceChoice::kCpu) return at::kCPU;
  const int64_t cards = card_count();
  if (cards == 0 && choice == DeviceChoice::kAuto) return at::kCPU;
  const int64_t card = card_of_rank(cards, local_rank);
  if (card >= cards) {
    throw EnvironmentError(
        fmt::format("device: found {} CUDA cards, expected {} (one for each process of this machine; \"cpu\" "
                    "runs without)",
                    cards, local_rank + 1));
  }
  const auto index = static_cast<at::DeviceIndex>(card);
  at::accelerator::setDeviceIndex(index);
  // Its allocator is asked for statistics, perhaps before anything was allocated, which it refuses until
  // then.
  at::globalContext().lazyInitDevice(at::kCUDA);
  return {at::kCUDA, index};
}

int64_t available_memory(const at::Device& device, int64_t local_ranks) {
  if (!device.is_cpu()) {
    return static_cast<int64_t>(at::accelerator::getMemoryInfo(device.index()).first);
  }
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  int64_t available = kilobytes_of("/proc/meminfo", "MemAvailable:");
  if (available < 0) available = kNoLimit;
  available = std::min(available, room_in_control_group("/sys/fs/cgroup"));
  return available / local_ranks;
}

int64_t room_in_control_group(const std::filesystem::path& group) {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  const int64_t limit = number_in((group / "memory.max").c_str(), kNoLimit);
  if (limit == kNoLimit) return kNoLimit;
  const int64_t used = number_in((group / "memory.current").c_str(), 0);
  const int64_t cached = number_after((group / "memory.stat").c_str(), "inactive_file ");
  return std::clamp<int64_t>(limit - used + std::max<int64_t>(0, cached), 0, limit);
}

int64_t peak_memory_bytes(const at::Device& device) {
  if (device.is_cpu()) return std::max<int64_t>(0, kilobytes_of("/proc/self/status", "VmHWM:"));
  const auto stats = at::accelerator::getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(at::CachingAllocator::StatType::AGGREGATE)].peak;
}

bool begin_peak_memory(const at::Device& device) {
  if (!device.is_cpu()) {
    at::accelerator::resetPeakStats(device.index());
    return true;
  }
  malloc_trim(0);  // what was freed and kept would count as in use
  std::ofstream control("/proc/self/clear_refs");
  control << 5;
  control.close();
  return control.good();
}

Json machine_json(const at::Device& device) {
  return {{"device", device.is_cpu() ? "cpu" : "cuda"},
          {"threads", at::get_num_threads()},
          {"instruction_set", at::get_cpu_capability()},
          {"torch", TORCH_VERSION},
          {"build", build_id()}};
}

Json run_machine_json(const at::Device& device, const World& world) {
  Json machine = machine_json(device);
  machine["processes"] = world.size;
  if (!device.is_cpu()) {
    if (const std::string card = Card(device.index()).name(); !card.empty()) machine["card"] = card;
  }
  return machine;
}

}  // namespace satune
