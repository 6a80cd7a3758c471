#include "trainer/fine_tune.h"

#include <spdlog/spdlog.h>

#include <cstdlib>

#include "data/files/error.h"
#include "trainer/device.h"
#include "trainer/ranks.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/training_run.h"

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

void check_shard_groups(const Settings& settings, int64_t world_size) {
  const int64_t size = settings.shard_group_size.value_or(world_size);
  if (size > world_size || world_size % size != 0) {
    throw bad_input("shard_group_size", std::to_string(size),
                    fmt::format("a divisor of the number of processes, {}", world_size));
  }
}

/// What a rank does, from the first look at the machine to the export.
int run_rank(const Settings& settings, const TrainOptions& options, SignalWatch& signals, Ranks& ranks) {
  check_shard_groups(settings, ranks.world().size);
  use_threads(settings, options.ranks.local_world_size);
  const at::Device device = choose_device(settings.device, options.ranks.local_rank);
  if (ranks.is_leader()) refuse_used_folder(settings);
  const RunFolder folder(settings, ranks.is_leader());
  check_one_folder(folder, ranks.coordinator());

  const SnapshotStore store(folder.snapshots(), *options.file_ops);
  const auto snapshot = agree_on_snapshot(settings, store, ranks);
  const auto plan = plan_run(settings, ranks, snapshot.get());
  if (ranks.is_leader()) {
    if (snapshot) check_continuation(*snapshot, *plan, run_machine_json(device, ranks.world()));
    check_disk(folder.path(), disk_need(*plan), free_disk_bytes(folder.path()));
    write_file_atomic(folder.path() / "config.json", write_json(settings_json(settings)), *options.file_ops);
  }
  ranks.coordinator().barrier("planned");

  ranks.connect_groups(device, settings.shard_group_size.value_or(ranks.world().size));
  TrainingRun run(*plan, folder, store, snapshot.get(), device, signals, ranks, options);
  const ExitCode code = run.train();
  if (code == kExitOk) run.finish();
  ranks.end();
  return code;
}

int exit_code_of(const std::exception& error) {
  if (const auto* failed = dynamic_cast<const RunFailed*>(&error)) return failed->exit_code();
  if (dynamic_cast<const BadInput*>(&error) != nullptr) return kExitBadInput;
  if (dynamic_cast<const EnvironmentError*>(&error) != nullptr) return kExitEnvironment;
  return kExitFailure;
}

}  // namespace

int run_training(const Settings& settings, const TrainOptions& options) {
  const World& world = options.ranks.world;
  if (world.rank > 0) spdlog::set_level(std::max(spdlog::get_level(), spdlog::level::warn));
  SignalWatch signals;
  const auto end_process = [&options](const std::string& message, int code) {
    if (options.report) options.report(message, code);
    std::_Exit(code);
  };
  Ranks ranks(options.ranks, settings, signals, end_process);
  if (world.size == 1) return run_rank(settings, options, signals, ranks);
  try {
    return run_rank(settings, options, signals, ranks);
  } catch (const std::exception& error) {
    const int code = exit_code_of(error);
    // The report first: those of ranks that fail because of this one carry a later time.
    if (options.report) options.report(error.what(), code);
    ranks.coordinator().announce_failure(error.what(), code);
    std::_Exit(code);
  }
}

}  // namespace satune
