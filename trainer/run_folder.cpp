#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "trainer/final_export.h"
#include "trainer/snapshot.h"
#include "trainer/snapshot_store.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kLockFile = ".lock";
constexpr std::string_view kEpochExport = "export-epoch-";

struct RemovedAtEnd {
  fs::path path;
  explicit RemovedAtEnd(fs::path file) : path(std::move(file)) {}
  ~RemovedAtEnd() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
  RemovedAtEnd(const RemovedAtEnd&) = delete;
  RemovedAtEnd& operator=(const RemovedAtEnd&) = delete;
};

bool holds_anything(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  return !error && std::any_of(begin(entries), end(entries), [](const fs::directory_entry& entry) {
    return entry.path().filename() != kLockFile;
  });
}

/// Whether a run writes something of this name into its folder, in the place of what is there.
bool is_replaced_by_runs(const std::string& name) {
  constexpr std::string_view kNames[] = {"config.json",  "data.json", "metrics.jsonl", "samples.jsonl",
                                         "exports.json", "export",    "profile"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         name.starts_with(kEpochExport);
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

/// Kept at most beside one in progress: a short run saves at its end and at one stop before.
int64_t kept_snapshots(const Settings& settings, int64_t steps) {
  const int64_t limit = std::max<int64_t>(1, settings.save_total_limit);
  if (settings.keep_best) return limit + 1;
  if (settings.save_minutes > 0) return limit;
  const int64_t periodic = settings.save_steps > 0 ? (steps - 1) / settings.save_steps : 0;
  return std::min(limit, periodic + 1);
}

/// Bytes of what a run has saved and counts again in its need: complete snapshots and exports of epochs.
uint64_t kept_bytes(const fs::path& output_dir) {
  uint64_t bytes = 0;
  for (const StoredSnapshot& snapshot : SnapshotStore(output_dir / kSnapshotFolder).scan()) {
    if (snapshot.damage.empty()) bytes += folder_bytes(snapshot.folder);
  }
  std::error_code error;
  for (fs::directory_iterator entry(output_dir, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().starts_with(kEpochExport)) bytes += folder_bytes(entry->path());
  }
  return bytes;
}

}  // namespace

void check_output_folder(const Settings& settings) {
  const fs::path folder = settings.output_dir;
  const std::string place = "output_dir " + settings.output_dir;
  if (settings.resume == "never" && holds_anything(folder)) {
    throw bad_input(place, "a folder that is not empty",
                    "a new or an empty one with --resume never (the default, auto, continues the run)");
  }
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    names.push_back(entry->path().filename().string());
  std::sort(names.begin(), names.end());
  const fs::path model = settings.model_name_or_path;
  std::error_code missing;
  if (fs::equivalent(folder, model, missing))
    throw bad_input(place, "the folder of the model (model_name_or_path)", "another one");
  for (const std::string& name : names) {
    const bool exported = (name == "export" && settings.export_at_end) ||
                          (name.starts_with(kEpochExport) && settings.export_every_epoch);
    if (exported && fs::equivalent(folder / name, model, missing))
      throw bad_input(place, fmt::format("its {} as the model (model_name_or_path)", name),
                      "another one: the run would replace its own model");
  }
  // Every run leaves its lock; who copies without hidden files has the rest.
  const auto has = [&](std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (has(kLockFile) || (has(kSnapshotFolder) && has("metrics.jsonl"))) return;
  const auto replaced = std::find_if(names.begin(), names.end(), is_replaced_by_runs);
  if (replaced == names.end()) return;
  throw bad_input(place, fmt::format("a {} that no run of satune has left there", *replaced),
                  "a new folder, or one of a run: this one would be overwritten");
}

RunFolder::RunFolder(const Settings& settings, bool owner) : path_(settings.output_dir) {
  if (!owner) return;
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) {
    throw EnvironmentError(fmt::format("output_dir {}: cannot be made: {}", path_.string(), error.message()));
  }
  lock_ = open_lock(path_);
  remove_stale_temporaries(path_);
  if (!fs::is_directory(snapshots(), error)) return;
  // Under the lock, where there is one, what writes here belongs to an attempt that has failed.
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) {
    remove_temporaries(snapshots());
  } else {
    remove_stale_temporaries(snapshots());
  }
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

fs::path RunFolder::snapshots() const {
  return path_ / kSnapshotFolder;
}

fs::path RunFolder::exported_epoch(int64_t epoch) const {
  return path_ / fmt::format("{}{:04}", kEpochExport, epoch);
}

void check_one_folder(const RunFolder& folder, Coordinator& coordinator) {
  const World& world = coordinator.world();
  // Named like a temporary file of ours: what a crash leaves is removed at the next start.
  std::optional<RemovedAtEnd> mark;
  if (world.rank == 0) {
    mark.emplace(folder.path() / fmt::format(".ranks.tmp-{}", ::getpid()));
    write_file_atomic(mark->path, "");
    coordinator.publish("one folder", mark->path.filename().string());
  }
  const fs::path expected = folder.path() / coordinator.wait_for("one folder");
  std::error_code error;
  if (!fs::exists(expected, error)) {
    throw EnvironmentError(
        fmt::format("output_dir {}: found no {} of rank 0 on rank {}, expected one folder that "
                    "all ranks share",
                    folder.path().string(), expected.filename().string(), world.rank));
  }
  coordinator.barrier("one folder seen");
}

DiskNeed disk_need(RunPlan& plan) {
  const Settings& settings = plan.settings();
  DiskNeed need;
  need.snapshot_bytes = snapshot_bytes(plan.table(), plan.trained_mask(),
                                       stored_parts(StateFormat(settings), settings.save_only_model));
  need.snapshots = kept_snapshots(settings, plan.total_steps());
  need.saving_bytes = snapshot_bytes(plan.table(), plan.trained_mask(), stored_parts(StateFormat(settings)));
  int64_t exports = settings.export_at_end ? 1 : 0;
  if (settings.export_every_epoch) exports += static_cast<int64_t>(std::ceil(plan.epochs_of_run()));
  need.export_bytes = static_cast<uint64_t>(exports * plan.table().parameter_count() *
                                            dtype_bytes(export_dtype(settings, plan.config())));
  return need;
}

void check_disk(const fs::path& output_dir, const DiskNeed& need, uint64_t free_bytes) {
  const uint64_t ours = kept_bytes(output_dir);
  if (free_bytes + ours >= need.total()) return;
  throw EnvironmentError(
      fmt::format("output_dir {}: found {} bytes free, needed {} more than what the run has saved already: "
                  "{} of {} "
                  "bytes (save_total_limit), one of {} being written{}",
                  output_dir.string(), free_bytes, need.total() - std::min(ours, need.total()),
                  counted(need.snapshots, "snapshot"), need.snapshot_bytes, need.saving_bytes,
                  need.export_bytes > 0 ? fmt::format(", and {} bytes of exports", need.export_bytes) : ""));
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
