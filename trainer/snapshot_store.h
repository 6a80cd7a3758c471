// The snapshots of a run folder: which are complete, which to continue from, which to delete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/files/atomic_file.h"

namespace satune {

struct StoredSnapshot {
  int64_t step = 0;
  std::filesystem::path folder;
  std::string damage;  ///< why it cannot be used; "" = complete, as far as names and sizes tell
};

class SnapshotStore {
 public:
  enum class Access {
    kManage,
    kLook,  ///< set_aside() and prune() leave everything as it is: for --dry-run
  };

  /// output_dir/snapshots, which need not exist.
  explicit SnapshotStore(std::filesystem::path folder, FileOps& ops = posix_file_ops(),
                         Access access = Access::kManage);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path path_of(int64_t step) const;

  /// Every folder named like a snapshot, ascending by step. Reads manifests and sizes, no checksums.
  std::vector<StoredSnapshot> scan() const;

  /// Renames a damaged snapshot to NAME.damaged (replacing an older one), so that it is neither continued
  /// from nor counted. Throws EnvironmentError.
  void set_aside(const std::filesystem::path& snapshot) const;

  /// Deletes the snapshot of a step. A folder loses its name before its files, so that a crash in between
  /// leaves nothing that looks complete. Throws EnvironmentError.
  void remove(int64_t step) const;

  /// Deletes complete snapshots but the `keep_last` newest and that of step `keep_also` (0 = none), oldest
  /// first. Throws EnvironmentError.
  void prune(int64_t keep_last, int64_t keep_also) const;

 private:
  std::filesystem::path folder_;
  FileOps& ops_;
  Access access_;
};

}  // namespace satune
