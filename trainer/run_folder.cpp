#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "data/files/error.h"
#include "trainer/final_export.h"
#include "trainer/snapshot.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kLockFile = ".lock";

bool holds_anything(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  return !error && std::any_of(begin(entries), end(entries), [](const fs::directory_entry& entry) {
    return entry.path().filename() != kLockFile;
  });
}

int open_lock(const fs::path& folder) {
  const fs::path path = folder / kLockFile;
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) {
    throw EnvironmentError(
        fmt::format("output_dir {}: cannot be written: {}", folder.string(), std::strerror(errno)));
  }
  // A network file system without locks is used as if nobody else were there.
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(fd);
    throw bad_input("output_dir " + folder.string(), "another satune process training into it",
                    "a folder of its own for each run");
  }
  return fd;
}

}  // namespace

void refuse_used_folder(const Settings& settings) {
  if (settings.resume == "never" && holds_anything(settings.output_dir)) {
    throw bad_input("output_dir " + settings.output_dir, "a folder that is not empty",
                    "a new or an empty one with --resume never (the default, auto, continues the run)");
  }
}

RunFolder::RunFolder(const Settings& settings) : path_(settings.output_dir) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) {
    throw EnvironmentError(fmt::format("output_dir {}: cannot be made: {}", path_.string(), error.message()));
  }
  lock_ = open_lock(path_);
  remove_stale_temporaries(path_);
  if (fs::is_directory(snapshots(), error)) remove_stale_temporaries(snapshots());
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

fs::path RunFolder::snapshots() const {
  return path_ / kSnapshotFolder;
}

fs::path RunFolder::exported_epoch(int64_t epoch) const {
  return path_ / fmt::format("export-epoch-{:04}", epoch);
}

DiskNeed disk_need(RunPlan& plan) {
  const Settings& settings = plan.settings();
  DiskNeed need;
  need.snapshot_bytes = snapshot_bytes(plan.table(), plan.trained_mask(), settings.save_only_model);
  need.snapshots = std::max<int64_t>(1, settings.save_total_limit) + (settings.keep_best ? 1 : 0) + 1;
  const auto epochs = static_cast<int64_t>(std::ceil(plan.epochs_after(plan.total_steps())));
  const int64_t exports = (settings.export_at_end ? 1 : 0) + (settings.export_every_epoch ? epochs : 0);
  need.export_bytes = static_cast<uint64_t>(exports * plan.table().parameter_count() *
                                            dtype_bytes(export_dtype(settings, plan.config())));
  return need;
}

void check_disk(const fs::path& output_dir, const DiskNeed& need, uint64_t free_bytes) {
  const uint64_t ours = folder_bytes(output_dir / kSnapshotFolder) + folder_bytes(output_dir / "export");
  if (free_bytes + ours >= need.total()) return;
  throw EnvironmentError(fmt::format(
      "output_dir {}: found {} bytes free, needed {} more than its snapshots occupy now: {} snapshots of {} "
      "bytes (save_total_limit and the one being written){}",
      output_dir.string(), free_bytes, need.total() - std::min(ours, need.total()), need.snapshots,
      need.snapshot_bytes,
      need.export_bytes > 0 ? fmt::format(" and {} bytes of exports", need.export_bytes) : ""));
}

uint64_t folder_bytes(const fs::path& folder) {
  uint64_t total = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_regular_file(ignored)) total += entry->file_size(ignored);
  }
  return total;
}

}  // namespace satune
