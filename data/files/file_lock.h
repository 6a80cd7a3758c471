// An advisory lock on a file, so that who uses it and who would remove it see each other.
#pragma once

#include <filesystem>
#include <optional>

namespace satune {

/// Move-only; released by the destructor or the end of the process. Works between processes and between
/// objects of one process, and on NFS between machines (flock(2)).
class FileLock {
 public:
  enum class Kind { kShared, kExclusive };

  /// Does not wait. Nothing when the file is not there, cannot be opened or is locked in a way that excludes
  /// this one. An exclusive lock asks for permission to write. On a file system without locks a shared one is
  /// granted, because nobody gets an exclusive one.
  static std::optional<FileLock> try_lock(const std::filesystem::path& path, Kind kind);

  ~FileLock();
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /// Whether the locked file is still the one at `path`: it may have been removed or replaced before the
  /// lock was had.
  bool is_at(const std::filesystem::path& path) const;

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace satune
