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
  /// Both exist, and each takes the other's name (renameat2, RENAME_EXCHANGE).
  virtual int exchange(const char* one, const char* other);
  virtual int mkdir(const char* path, unsigned mode);
};

/// The process-wide default: plain POSIX calls, stateless.
FileOps& posix_file_ops();

/// Writes one file, as `.NAME.tmp-PID` beside it until commit() renames it into place; the folder must exist.
/// Nothing is visible at `path` until then, and a file that was there stays as it was; without commit() the
/// destructor removes the temporary file. Throws EnvironmentError naming path and reason ("No space left on
/// device"); after that the object can only be destroyed. Should the very last step fail, making the rename
/// durable, the new file is there and whole.
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
  [[noreturn]] void fail(std::string_view action, int error);

  std::filesystem::path path_, temporary_;
  FileOps& ops_;
  int fd_ = -1;
  bool pending_ = false;  // the temporary file is ours to remove
  uint64_t bytes_written_ = 0;
  uint32_t checksum_ = 0;
};

/// One call: write_file_atomic(path, text).
void write_file_atomic(const std::filesystem::path& path, std::string_view text,
                       FileOps& ops = posix_file_ops());

/// A folder that appears complete or not at all. Write files into path(), which is `.NAME.tmp-PID` beside the
/// target; commit() fsyncs everything in it and renames it to the target; without commit() the destructor
/// removes it. Missing parents of the target are made. The target must not exist or must be an empty folder:
/// BadInput otherwise, at once; or, with kReplace, may be a folder with an earlier content, which stays as it
/// was until commit(). Everything else that fails is an EnvironmentError. Should the very last step of
/// commit() fail, making the rename durable, the new folder is there and whole, and an earlier one is left
/// under the temporary name. Leftovers of dead processes are removed by remove_stale_temporaries().
class AtomicDirectory {
 public:
  enum class Existing { kRefuse, kReplace };
  explicit AtomicDirectory(std::filesystem::path target, FileOps& ops = posix_file_ops(),
                           Existing existing = Existing::kRefuse);
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

/// Puts the folder `made` in the place of `target`; an earlier `target` stays there until then. Returns where
/// that one is now: a temporary name for the caller to remove, empty where there was none. Throws
/// EnvironmentError; then both are as they were.
std::filesystem::path replace_folder(const std::filesystem::path& made, const std::filesystem::path& target,
                                     FileOps& ops = posix_file_ops());

/// Removes temporary files and folders left in `directory` by processes of this machine that are gone (a
/// process that began after the last change of the leftover is another one with the same id; in containers
/// that may be the caller). Names of other shapes are not touched. To be called before this process saves
/// anything there.
void remove_stale_temporaries(const std::filesystem::path& directory);
/// Removes all of them, for a folder where nobody but the caller may be writing.
void remove_temporaries(const std::filesystem::path& directory);

/// CRC-32C of `bytes`, continuing from `seed` (0 to start).
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);
/// The same without the processor's instruction: what crc32c() uses where there is none.
uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t seed = 0);

/// Bytes that can be written under `path` (its nearest existing parent). Throws EnvironmentError.
uint64_t free_disk_bytes(const std::filesystem::path& path);

}  // namespace satune
