// The options of a command whose work is done by ranks, and the decision who starts them.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/launcher.h"
#include "trainer/rank_environment.h"
#include "trainer/settings.h"

namespace satune {

struct RankOptions {
  std::optional<int64_t> processes;     ///< --nproc-per-node
  std::optional<int64_t> max_restarts;  ///< --max-restarts
};

void add_rank_options(CLI::App& command, RankOptions& options);

/// Throws BadInput for values out of range, for restarts that would not take up what was saved, and for any
/// of the options in a process that somebody else started as a rank.
void check_rank_options(const RankOptions& options, const Settings& settings,
                        const RankEnvironment& environment);

/// Ranks of a run that nobody else has started: as asked for, else one for each card, one on the CPU.
int64_t process_count(const RankOptions& options, const Settings& settings);

/// The run needs a launcher: several ranks, or one that is started again.
bool needs_launcher(const RankOptions& options, int64_t processes);

/// Starts this program `processes` times with this process's arguments (less the options above) and returns
/// the run's end. Throws BadInput when ranks would have to share a card, or do not make whole shard groups.
LaunchEnd start_ranks(const RankOptions& options, const Settings& settings, int64_t processes);

/// Arguments less --nproc-per-node and --max-restarts with their values.
std::vector<std::string> without_rank_options(const std::vector<std::string>& arguments);

}  // namespace satune
