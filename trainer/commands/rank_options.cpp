#include "trainer/commands/rank_options.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <fstream>
#include <string_view>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "trainer/device.h"
#include "trainer/visible_cards.h"

namespace satune {
namespace {

constexpr const char* kProcesses = "--nproc-per-node";
constexpr const char* kMaxRestarts = "--max-restarts";

/// More than anybody tries on purpose, and few enough for a machine to refuse the run in an orderly way when
/// the ranks do not fit into its memory. Steps set no bound: each rank adds rows to them.
constexpr int64_t kRanksPerProcessor = 16;

std::vector<std::string> own_arguments() {
  std::ifstream words("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string word; std::getline(words, word, '\0');) arguments.push_back(word);
  if (arguments.empty()) throw EnvironmentError("/proc/self/cmdline: found nothing, expected /proc mounted");
  arguments.erase(arguments.begin());
  return arguments;
}

// OpenMP's waiting threads spin at first, and where there are more than processors, those that have work wait
// for them. The runtime reads this once, at its start.
std::vector<std::string> waiting_policy(const Settings& settings, int64_t processes) {
  const int64_t threads = processes * operator_threads_unbound(settings, processes);
  if (threads <= usable_processors()) return {};
  // What the user has set in either way says more.
  for (const char* name : {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}) {
    if (std::getenv(name) != nullptr) return {};
  }
  return {"OMP_WAIT_POLICY=passive"};
}

void refuse_shared_cards(const RankOptions& options, const Settings& settings) {
  const int64_t cards = count_visible_cards();
  if (settings.device == DeviceChoice::kCpu || cards == 0 || options.processes.value_or(1) <= cards) return;
  throw bad_input(kProcesses, std::to_string(*options.processes),
                  fmt::format("at most {}, the visible cards (or device=cpu)", cards));
}

}  // namespace

void add_rank_options(CLI::App& command, RankOptions& options) {
  command.add_option(kProcesses, options.processes,
                     "Start N ranks on this machine (default: one for each visible card, one on the CPU)");
  command.add_option(
      kMaxRestarts, options.max_restarts,
      "Start all ranks again after a failure, at most so often; they take up the newest snapshot "
      "(default: 0)");
}

void check_rank_options(const RankOptions& options, const Settings& settings,
                        const RankEnvironment& environment) {
  if (options.processes.value_or(1) < 1)
    throw bad_input(kProcesses, std::to_string(*options.processes), "1 or more");
  const int64_t processors = usable_processors(), most = kRanksPerProcessor * processors;
  if (options.processes.value_or(1) > most) {
    throw bad_input(
        kProcesses, std::to_string(*options.processes),
        fmt::format("at most {}, {} for each of {} usable processors", most, kRanksPerProcessor, processors));
  }
  if (options.max_restarts.value_or(0) < 0)
    throw bad_input(kMaxRestarts, std::to_string(*options.max_restarts), "0 or more");
  if (options.max_restarts.value_or(0) > 0 && settings.resume != "auto") {
    throw bad_input(kMaxRestarts, "resume " + settings.resume,
                    "resume auto: ranks that are started again take up their newest snapshot");
  }
  if (options.max_restarts.value_or(0) > 0 && settings.save_only_model) {
    throw bad_input(kMaxRestarts, "save_only_model=true", "snapshots that a run can continue from");
  }
  if (environment.launched && (options.processes || options.max_restarts)) {
    throw bad_input(
        options.processes ? kProcesses : kMaxRestarts,
        fmt::format("rank {} of {} started by a launcher", environment.world.rank, environment.world.size),
        "the option on the launcher's command line, or no launcher");
  }
}

int64_t process_count(const RankOptions& options, const Settings& settings) {
  if (options.processes) return *options.processes;
  return settings.device == DeviceChoice::kCpu ? 1 : default_process_count();
}

bool needs_launcher(const RankOptions& options, int64_t processes) {
  return processes > 1 || options.max_restarts.value_or(0) > 0;
}

LaunchEnd start_ranks(const RankOptions& options, const Settings& settings, int64_t processes) {
  refuse_shared_cards(options, settings);
  // Each rank would find it by itself, and say so.
  naming_source(settings, [&] { return shard_group_size(settings, processes); });
  LaunchOptions launch;
  launch.processes = processes;
  launch.max_restarts = options.max_restarts.value_or(0);
  launch.default_environment = waiting_policy(settings, processes);
  launch.signals_when_ready = true;
  spdlog::info("starting {}", counted(processes, "rank"));
  return launch_ranks("/proc/self/exe", without_rank_options(own_arguments()), launch);
}

std::vector<std::string> without_rank_options(const std::vector<std::string>& arguments) {
  const std::array<std::string, 2> dropped = {kProcesses, kMaxRestarts};
  std::vector<std::string> left;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (std::find(dropped.begin(), dropped.end(), word) != dropped.end()) {
      ++i;  // its value
    } else if (std::none_of(dropped.begin(), dropped.end(),
                            [&](const std::string& name) { return word.starts_with(name + "="); })) {
      left.push_back(word);
    }
  }
  return left;
}

}  // namespace satune
