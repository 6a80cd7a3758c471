// Files and folders that appear complete or not at all: written under a temporary name beside the target,
// fsynced, then renamed, and the parent folder fsynced. Every system call goes through FileOps, so that a
// test can fail any one of them.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace satune {

/// The system calls a save makes. The default implementation is POSIX; tests override single calls.
/// Each returns what the system call returns and leaves errno set on failure.
class FileOps {
 public:
  virtual ~FileOps() = default;
  virtual int open(const char* path, int flags, unsigned mode);
  virtual ssize_t write(int fd, const void* data, size_t size);
  virtual int fsync(int fd);
  virtual int close(int fd);
  virtual int rename(const char* from, const char* to);
  virtual int mkdir(const char* path, unsigned mode);
};

/// The process-wide default: plain POSIX calls, stateless.
FileOps& posix_file_ops();

/// Writes one file. Nothing is visible at `path` until commit(); without commit() the destructor removes
/// the temporary file. Throws EnvironmentError naming path and reason ("No space left on device").
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path, FileOps& ops = posix_file_ops());
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  uint64_t bytes_written() const { return bytes_written_; }
  /// CRC-32C (Castagnoli) of everything written so far.
  uint32_t checksum() const { return checksum_; }
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  FileOps& ops_;
  int fd_ = -1;
  uint64_t bytes_written_ = 0;
  uint32_t checksum_ = 0;
};

/// One call: write_file_atomic(path, text).
void write_file_atomic(const std::filesystem::path& path, std::string_view text,
                       FileOps& ops = posix_file_ops());

/// A folder that appears complete or not at all. Write files into path(); commit() fsyncs the folder and
/// renames it to the target (which must not exist or must be empty); without commit() the destructor
/// removes it. Leftover temporary folders of dead processes are removed by remove_stale_temporaries().
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::filesystem::path target, FileOps& ops = posix_file_ops());
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  FileOps& ops_;
  bool committed_ = false;
};

/// Removes temporary files and folders left in `directory` by processes that are gone.
void remove_stale_temporaries(const std::filesystem::path& directory);

/// CRC-32C of `bytes`, continuing from `seed` (0 to start).
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

/// Bytes that can be written under `path` (its nearest existing parent). Throws EnvironmentError.
uint64_t free_disk_bytes(const std::filesystem::path& path);

}  // namespace satune
