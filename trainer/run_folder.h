// The folder of a run: one process at a time owns it, and it must be able to hold what the run will save.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "data/files/atomic_file.h"
#include "trainer/coordinator.h"
#include "trainer/run_plan.h"
#include "trainer/settings.h"

namespace satune {

/// Throws BadInput for an output_dir that is the model's own folder or will replace it, one that holds what a
/// run would replace but was no run's, and with resume "never" one that holds anything.
void check_output_folder(const Settings& settings);

/// Owns output_dir (made if missing) by an advisory lock on its `.lock`, and removes what dead processes left
/// half-written. Throws BadInput when another process trains into it, EnvironmentError when it cannot be
/// written. Ranks beside the first only look at it.
class RunFolder {
 public:
  explicit RunFolder(const Settings& settings, bool owner = true);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path snapshots() const;
  std::filesystem::path exported() const { return path_ / "export"; }
  std::filesystem::path exported_epoch(int64_t epoch) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
};

/// Throws EnvironmentError on a rank that does not see in its output_dir what rank 0 has written there: every
/// rank saves its own part, and all parts have to end up in one folder. All ranks call it, once.
void check_one_folder(const RunFolder& folder, Coordinator& coordinator);

/// What a run will occupy at most: the snapshots kept, the one in progress and the exports asked for.
struct DiskNeed {
  uint64_t snapshot_bytes = 0;  ///< of one that is kept
  int64_t snapshots = 0;        ///< kept at most
  uint64_t saving_bytes = 0;    ///< of the one in progress: with optimizer state, which a stop saves always
  uint64_t export_bytes = 0;    ///< all exports together
  uint64_t total() const {
    return snapshot_bytes * static_cast<uint64_t>(snapshots) + saving_bytes + export_bytes;
  }
};
DiskNeed disk_need(RunPlan& plan);

/// Throws EnvironmentError naming bytes found and needed when `free_bytes` and what the run's complete
/// snapshots and epoch exports already occupy do not cover the need. An export that will be replaced counts
/// as used: it stays until the new one is there.
void check_disk(const std::filesystem::path& output_dir, const DiskNeed& need, uint64_t free_bytes);

/// Bytes of all files under a folder; 0 if it is not there.
uint64_t folder_bytes(const std::filesystem::path& folder);

}  // namespace satune
