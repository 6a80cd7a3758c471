#include "trainer/snapshot_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "data/files/error.h"
#include "trainer/snapshot.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

std::string damage_of(const fs::path& snapshot) {
  try {
    read_manifest(snapshot);
    return "";
  } catch (const BadInput& error) {
    return error.what();
  } catch (const EnvironmentError& error) {  // a disk that cannot read it
    return error.what();
  }
}

void rename_or_throw(FileOps& ops, const fs::path& from, const fs::path& to) {
  if (ops.rename(from.c_str(), to.c_str()) != 0) {
    throw EnvironmentError(fmt::format("{}: cannot be renamed to {}: {}", from.string(),
                                       to.filename().string(), std::strerror(errno)));
  }
}

void remove_or_throw(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) {
    throw EnvironmentError(fmt::format("{}: cannot be deleted: {}", folder.string(), error.message()));
  }
}

}  // namespace

SnapshotStore::SnapshotStore(fs::path folder, FileOps& ops, Access access)
    : folder_(std::move(folder)), ops_(ops), access_(access) {}

fs::path SnapshotStore::path_of(int64_t step) const {
  return folder_ / snapshot_name(step);
}

std::vector<StoredSnapshot> SnapshotStore::scan() const {
  std::vector<StoredSnapshot> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder_, error), end; !error && entry != end; entry.increment(error)) {
    const int64_t step = snapshot_step(entry->path().filename().string());
    if (step < 0) continue;
    found.push_back({step, entry->path(), damage_of(entry->path())});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

void SnapshotStore::set_aside(const fs::path& snapshot) const {
  if (access_ == Access::kLook) return;
  const fs::path aside = snapshot.string() + ".damaged";
  remove_or_throw(aside);
  rename_or_throw(ops_, snapshot, aside);
}

void SnapshotStore::remove(int64_t step) const {
  // The shape of a temporary folder of ours: what a crash leaves is removed at the next start.
  const fs::path doomed = folder_ / fmt::format(".{}.tmp-{}", snapshot_name(step), ::getpid());
  rename_or_throw(ops_, path_of(step), doomed);
  remove_or_throw(doomed);
}

void SnapshotStore::prune(int64_t keep_last, int64_t keep_also) const {
  if (access_ == Access::kLook) return;
  std::vector<StoredSnapshot> complete = scan();
  std::erase_if(complete, [](const StoredSnapshot& snapshot) { return !snapshot.damage.empty(); });
  const auto count = static_cast<int64_t>(complete.size());
  for (int64_t i = 0; i < count - keep_last; ++i) {
    if (complete[i].step == keep_also && keep_also > 0) continue;
    remove(complete[i].step);
  }
}

}  // namespace satune
