#include "trainer/fine_tune.h"

#include <spdlog/spdlog.h>

#include "trainer/device.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/training_run.h"

namespace satune {

int run_training(const Settings& settings, const TrainOptions& options) {
  SignalWatch signals;
  use_threads(settings);
  const at::Device device = choose_device(settings.device);
  refuse_used_folder(settings);

  RunPlan plan(settings);
  RunFolder folder(settings);
  const SnapshotStore store(folder.snapshots(), *options.file_ops);
  const auto snapshot = find_snapshot(settings, store);
  if (snapshot) check_continuation(*snapshot, plan, machine_json(device));
  check_disk(folder.path(), disk_need(plan), free_disk_bytes(folder.path()));
  write_file_atomic(folder.path() / "config.json", write_json(settings_json(settings)), *options.file_ops);

  TrainingRun run(plan, folder, store, snapshot.get(), device, signals, options);
  if (const ExitCode code = run.train(); code != kExitOk) return code;
  run.finish();
  return kExitOk;
}

}  // namespace satune
