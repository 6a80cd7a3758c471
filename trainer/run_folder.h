// The folder of a run: one process at a time owns it, and it must be able to hold what the run will save.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "data/files/atomic_file.h"
#include "trainer/run_plan.h"
#include "trainer/settings.h"

namespace satune {

/// Throws BadInput for resume "never" when output_dir already holds anything.
void refuse_used_folder(const Settings& settings);

/// Owns output_dir (made if missing) by an advisory lock on its `.lock`, and removes what dead processes left
/// half-written. Throws BadInput when another process trains into it, EnvironmentError when it cannot be
/// written.
class RunFolder {
 public:
  explicit RunFolder(const Settings& settings);
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

/// What a run will occupy at most: keep + 1 snapshots and the exports asked for.
struct DiskNeed {
  uint64_t snapshot_bytes = 0;  ///< one
  int64_t snapshots = 0;        ///< kept at most, and the one in progress
  uint64_t export_bytes = 0;
  uint64_t total() const { return snapshot_bytes * static_cast<uint64_t>(snapshots) + export_bytes; }
};
DiskNeed disk_need(RunPlan& plan);

/// Throws EnvironmentError naming bytes found and needed when `free_bytes` and what the run folder's
/// snapshots and export already occupy (they will be replaced) do not cover the need.
void check_disk(const std::filesystem::path& output_dir, const DiskNeed& need, uint64_t free_bytes);

/// Bytes of all files under a folder; 0 if it is not there.
uint64_t folder_bytes(const std::filesystem::path& folder);

}  // namespace satune
