#include "data/token_cache_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "data/files/file_lock.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPrefix = "tokens-", kSuffix = ".bin";
constexpr std::chrono::hours kUnfinished{24};

struct Entry {
  fs::path path;
  uint64_t bytes;
  fs::file_time_type used;
};

bool is_token_cache(std::string_view name) {
  return name.starts_with(kPrefix) && name.ends_with(kSuffix);
}

// What AtomicFile calls the file of that name until it is whole. Its PID says nothing where several machines
// share the folder, so only its age tells that nobody writes it any more.
bool is_unfinished(std::string_view name) {
  return name.starts_with('.') && name.substr(1).starts_with(kPrefix) &&
         name.find(".bin.tmp-") != std::string_view::npos;
}

// Removes the file unless somebody has it open or has used it since it was looked at.
bool remove_unused(const Entry& entry) {
  const auto lock = FileLock::try_lock(entry.path, FileLock::Kind::kExclusive);
  std::error_code error;
  if (!lock || !lock->is_at(entry.path) || fs::last_write_time(entry.path, error) != entry.used) return false;
  return fs::remove(entry.path, error);
}

}  // namespace

fs::path token_cache_file(const fs::path& directory, std::string_view fingerprint) {
  return directory / fmt::format("{}{}{}", kPrefix, fingerprint.substr(0, 32), kSuffix);
}

void mark_token_cache_used(const fs::path& file) {
  std::error_code ignored;
  fs::last_write_time(file, fs::file_time_type::clock::now(), ignored);
}

std::vector<fs::path> sweep_token_caches(const fs::path& directory, const TokenCacheLimits& limits) {
  const auto now = fs::file_time_type::clock::now();
  std::vector<Entry> entries;
  std::vector<fs::path> removed;
  uint64_t total = 0;
  std::error_code error;
  for (fs::directory_iterator file(directory, error), end; !error && file != end; file.increment(error)) {
    const std::string name = file->path().filename().string();
    std::error_code gone;
    const Entry entry{file->path(), file->file_size(gone), file->last_write_time(gone)};
    if (gone) continue;  // removed by somebody else meanwhile
    if (is_unfinished(name) && now - entry.used > kUnfinished && fs::remove(entry.path, gone))
      removed.push_back(entry.path);
    if (!is_token_cache(name)) continue;
    entries.push_back(entry);
    total += entry.bytes;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  for (const Entry& entry : entries) {
    if (now - entry.used <= limits.unused && total <= limits.bytes) break;
    if (!remove_unused(entry)) continue;
    total -= entry.bytes;
    removed.push_back(entry.path);
  }
  return removed;
}

}  // namespace satune
