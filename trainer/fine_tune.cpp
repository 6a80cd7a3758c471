#include "trainer/fine_tune.h"

#include <spdlog/spdlog.h>

#include "trainer/attention_choice.h"
#include "trainer/common_ground.h"
#include "trainer/data_statistics.h"
#include "trainer/device.h"
#include "trainer/fp8_trial.h"
#include "trainer/ranks.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/training_run.h"
#include "trainer/watched_file_ops.h"

namespace satune {
namespace {

/// The snapshot to continue from: rank 0 chooses and checks it, the others open the same one.
std::unique_ptr<SnapshotReader> agree_on_snapshot(const Settings& settings, const SnapshotStore& store,
                                                  Ranks& ranks) {
  if (ranks.is_leader()) {
    auto snapshot = find_snapshot(settings, store);
    ranks.coordinator().publish("snapshot", snapshot ? snapshot->folder().string() : "");
    return snapshot;
  }
  const std::string folder = ranks.coordinator().wait_for("snapshot");
  return folder.empty() ? nullptr : std::make_unique<SnapshotReader>(folder);
}

std::unique_ptr<RunPlan> plan_run(const Settings& settings, Ranks& ranks, const SnapshotReader* snapshot) {
  std::unique_ptr<RunPlan> plan;
  const auto rows = snapshot ? rows_to_keep(*snapshot, settings) : std::nullopt;
  // The first fills the token cache that the others read.
  ranks.one_before_the_others("plan",
                              [&] { plan = std::make_unique<RunPlan>(settings, ranks.world().size, rows); });
  return plan;
}

/// What a rank does, from the first look at the machine to the export.
int run_rank(const Settings& settings, const TrainOptions& options, SignalWatch& signals, Ranks& ranks) {
  ranks.meet();
  const int64_t shard_group = shard_group_size(settings, ranks.world().size);
  use_threads(settings, options.ranks.local_world_size);
  const at::Device device = choose_device(settings.device, options.ranks.local_rank);
  check_attention(settings, device);
  check_fp8(settings, device);
  if (ranks.is_leader()) check_output_folder(settings);
  const RunFolder folder(settings, ranks.is_leader());
  check_one_folder(folder, ranks.coordinator());

  WatchedFileOps files(*options.file_ops, ranks.coordinator());
  const SnapshotStore store(folder.snapshots(), files);
  std::unique_ptr<SnapshotReader> snapshot = agree_on_snapshot(settings, store, ranks);
  const auto plan = plan_run(settings, ranks, snapshot.get());
  check_common_ground(common_ground(*plan, device), ranks.coordinator());
  if (ranks.is_leader()) {
    if (snapshot) check_continuation(*snapshot, *plan, run_machine_json(device, ranks.world()));
    check_disk(folder.path(), disk_need(*plan), free_disk_bytes(folder.path()));
    write_file_atomic(folder.path() / "config.json", write_json(settings_json(settings)), files);
    write_data_statistics(*plan, folder.path(), files);
  }
  ranks.coordinator().barrier("planned");

  ranks.connect_groups(device, shard_group);
  TrainingRun run(*plan, folder, store, snapshot.get(), device, signals, ranks, files,
                  options.ranks.local_world_size);
  if (options.profile_steps > 0) run.profile(options.profile_steps);
  snapshot.reset();  // its files are mapped: while they are, removing the snapshot frees no disk
  const ExitCode code = run.train();
  if (code == kExitOk) run.finish();
  ranks.end();
  return code;
}

}  // namespace

int run_training(const Settings& settings, const TrainOptions& options) {
  const World& world = options.ranks.world;
  if (world.rank > 0) spdlog::set_level(std::max(spdlog::get_level(), spdlog::level::warn));
  shard_group_size(settings,
                   world.size);  // what is wrong with it each rank finds by itself, before they meet
  SignalWatch signals(options.stopped_file, world.rank == 0
                                                ? stop_line("no step was done; the same command starts again")
                                                : std::string());
  Ranks ranks(options.ranks, settings, signals, options.report);
  if (world.size == 1) return run_rank(settings, options, signals, ranks);
  try {
    return run_rank(settings, options, signals, ranks);
  } catch (...) {
    ranks.end_failed();
  }
}

}  // namespace satune
