#include "trainer/measured_rates.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "data/files/error.h"
#include "data/files/json.h"
#include "trainer/device.h"
#include "trainer/model_plan.h"
#include "trainer/settings.h"
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
  std::ifstream in(file);
  if (!in)
    throw bad_input(file.string(), "no readable file", "the metrics.jsonl of a run (RUN is its output_dir)");
  MeasuredSteps steps;
  int64_t before = 0;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const std::string place = fmt::format("{}:{}", file.string(), number);
    const Json row = parse_json(line, place);
    if (!row.is_object() || !row.contains("num_tokens") || !row.contains("step_seconds") ||
        !row["num_tokens"].is_number() || !row["step_seconds"].is_number())
      throw bad_input(place, "no num_tokens and step_seconds", "a row as satune train writes it");
    const auto tokens = row["num_tokens"].get<int64_t>();
    const auto seconds = row["step_seconds"].get<double>();
    if (seconds > 0) steps.tokens_per_second.push_back(static_cast<double>(tokens - before) / seconds);
    before = tokens;
    steps.several_ranks |= row.contains("sent_reduced_bytes");
  }
  if (steps.tokens_per_second.size() < kFewestSteps)
    throw bad_input(file.string(), fmt::format("{} timed steps", steps.tokens_per_second.size()),
                    fmt::format("{} at least", kFewestSteps));
  return steps;
}

Sharded world_of(const fs::path& run, bool several_ranks) {
  const SnapshotStore store(run / "snapshots", posix_file_ops(), SnapshotStore::Access::kLook);
  const std::vector<StoredSnapshot> snapshots = store.scan();
  const auto newest = std::find_if(snapshots.rbegin(), snapshots.rend(),
                                   [](const StoredSnapshot& snapshot) { return snapshot.damage.empty(); });
  if (newest == snapshots.rend()) {
    if (!several_ranks) return {};
    throw bad_input((run / "snapshots").string(), "no complete snapshot",
                    "one, which tells the number of ranks");
  }
  const Json world = read_json_file(newest->folder / "state.json").at("world");
  return {world.at("size").get<int64_t>(), world.at("zero_stage").get<int64_t>(), 0};
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

double measured_flops(const fs::path& run) {
  const MeasuredSteps steps = read_steps(run / "metrics.jsonl");
  const Settings settings = read_settings(run / "config.json", {});
  const ModelPlan model = plan_model(settings);
  const Sharded sharded = world_of(run, steps.several_ranks);
  const at::Device device = choose_device(settings.device);
  const PlannedRun planned{settings,
                           model.config,
                           model.table,
                           model.trained_mask,
                           settings.per_device_train_batch_size * settings.max_length,
                           !device.is_cpu(),
                           1};
  // "auto" was settled by the memory of that time; as much as there is now is the best guess.
  const MemoryPlan memory = plan_memory(planned, sharded, available_memory(device, sharded.world_size));
  // At one FLOP a second and a link that costs nothing, seconds are FLOPs.
  const StepEstimate unit = estimate_step(planned, {}, memory.recording, {1, 1});
  const double per_token = (unit.forward + unit.backward) / static_cast<double>(planned.tokens);
  const std::vector<double> later(
      steps.tokens_per_second.begin() + static_cast<std::ptrdiff_t>(steps.tokens_per_second.size() / 2),
      steps.tokens_per_second.end());
  return per_token * median(later) / static_cast<double>(sharded.world_size);
}

}  // namespace satune
