#include "trainer/measured_rates.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <system_error>
#include <vector>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "model/files/json_fields.h"
#include "trainer/device.h"
#include "trainer/model_plan.h"
#include "trainer/percentile.h"
#include "trainer/settings.h"
#include "trainer/snapshot.h"
#include "trainer/snapshot_store.h"
#include "trainer/traffic_plan.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr size_t kFewestSteps = 4;

struct MeasuredSteps {
  std::vector<double> tokens_per_second;  ///< of all ranks
  bool several_ranks = false;
};

MeasuredSteps read_steps(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error))
    throw bad_input(file.string(), "no readable file", "the metrics.jsonl of a run (RUN is its output_dir)");
  const std::string text = read_text_file(file);
  MeasuredSteps steps;
  int64_t before = 0, number = 0;
  // What follows the last line's end is being written, or was when the run was killed.
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string place = fmt::format("{}:{}", file.string(), ++number);
    const Json row = parse_json(std::string_view(text).substr(begin, end - begin), file.string(),
                                {.line = static_cast<size_t>(number)});
    const JsonFields fields(row, place);
    const int64_t tokens = fields.integer("num_tokens", before, std::numeric_limits<int64_t>::max());
    const double seconds = fields.number("step_seconds");
    if (seconds > 0) steps.tokens_per_second.push_back(static_cast<double>(tokens - before) / seconds);
    before = tokens;
    steps.several_ranks |= row.contains("sent_reduced_bytes");
  }
  if (steps.tokens_per_second.size() < kFewestSteps)
    throw bad_input(file.string(), fmt::format("{} timed steps", steps.tokens_per_second.size()),
                    fmt::format("{} at least", kFewestSteps));
  return steps;
}

/// The state.json of a run's newest complete snapshot; empty when it has none.
fs::path newest_state(const fs::path& run) {
  const SnapshotStore store(run / "snapshots", posix_file_ops(), SnapshotStore::Access::kLook);
  const std::vector<StoredSnapshot> snapshots = store.scan();
  const auto newest = std::find_if(snapshots.rbegin(), snapshots.rend(),
                                   [](const StoredSnapshot& snapshot) { return snapshot.damage.empty(); });
  return newest == snapshots.rend() ? fs::path() : newest->folder / kStateFile;
}

Sharded world_of(const fs::path& run, const fs::path& state_file, bool several_ranks) {
  if (state_file.empty()) {
    if (!several_ranks) return {};
    throw bad_input((run / "snapshots").string(), "no complete snapshot",
                    "one, which tells the number of ranks");
  }
  const Json state = read_json_file(state_file.string());
  const JsonFields world = JsonFields(state, state_file.string()).object("world");
  return {world.integer("size", 1, std::numeric_limits<int32_t>::max()),
          world.integer("zero_stage", 0, kHighestStage), 0};
}

std::optional<bool> was_on_card(const fs::path& state_file) {
  if (state_file.empty()) return std::nullopt;
  const Json state = read_json_file(state_file.string());
  return JsonFields(state, state_file.string()).object("machine").string("device") != "cpu";
}

}  // namespace

MeasuredRate measured_rate(const fs::path& run) {
  const MeasuredSteps steps = read_steps(run / "metrics.jsonl");
  const Settings settings = read_settings(run / "config.json", {});
  const ModelPlan model = plan_model(settings);
  const fs::path state = newest_state(run);
  const Sharded sharded = world_of(run, state, steps.several_ranks);
  const at::Device device = choose_device(settings.device);
  const PlannedRun planned = planned_run(model, settings, !device.is_cpu(), 1);
  // "auto" was settled by the memory of that time; as much as there is now is the best guess.
  const MemoryPlan memory = plan_memory(planned, sharded, available_memory(device, sharded.world_size));
  // At one FLOP a second and a link that costs nothing, seconds are FLOPs.
  const StepEstimate unit = estimate_step(planned, {}, memory.recording, {1, 1});
  const double per_token = (unit.forward + unit.backward) / static_cast<double>(planned.tokens);
  const std::vector<double> later(
      steps.tokens_per_second.begin() + static_cast<std::ptrdiff_t>(steps.tokens_per_second.size() / 2),
      steps.tokens_per_second.end());
  return {per_token * percentile(later, 0.5) / static_cast<double>(sharded.world_size), was_on_card(state)};
}

}  // namespace satune
