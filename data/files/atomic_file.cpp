#include "data/files/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "data/files/error.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

fs::path temporary_beside(const fs::path& target) {
  return target.parent_path() / fmt::format(".{}.tmp-{}", target.filename().string(), ::getpid());
}

// "out/" names the folder "out".
fs::path without_trailing_slash(fs::path path) {
  return path.has_filename() ? path : path.parent_path();
}

[[noreturn]] void fail_environment(const fs::path& path, std::string_view action, int error) {
  throw EnvironmentError(fmt::format("{}: cannot {}: {}", path.string(), action, std::strerror(error)));
}

int open_retrying(FileOps& ops, const fs::path& path, int flags, unsigned mode = 0) {
  int fd;
  do fd = ops.open(path.c_str(), flags, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

int fsync_retrying(FileOps& ops, int fd) {
  int result;
  do result = ops.fsync(fd);
  while (result != 0 && errno == EINTR);
  return result;
}

// Linux has released the descriptor even when close() is interrupted.
int close_once(FileOps& ops, int fd) {
  const int result = ops.close(fd);
  return result != 0 && errno == EINTR ? 0 : result;
}

// Makes the entries of a folder durable. Some network file systems know no fsync of a folder; there the
// rename is as durable as it gets.
void fsync_path(FileOps& ops, const fs::path& path, bool is_folder) {
  const int fd = open_retrying(ops, path, O_RDONLY | O_CLOEXEC | (is_folder ? O_DIRECTORY : 0));
  if (fd < 0) fail_environment(path, "be opened for fsync", errno);
  const int result = fsync_retrying(ops, fd);
  const int error = errno;
  ops.close(fd);
  if (result != 0 && !(is_folder && (error == EINVAL || error == ENOTSUP))) {
    fail_environment(path, "be fsynced", error);
  }
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

void make_parents(FileOps& ops, const fs::path& folder) {
  std::error_code ignored;
  if (folder.empty() || fs::is_directory(folder, ignored)) return;
  make_parents(ops, folder.parent_path());
  if (!folder.has_filename()) return;
  if (ops.mkdir(folder.c_str(), 0777) == 0) return fsync_path(ops, parent_of(folder), true);
  if (errno != EEXIST) fail_environment(folder, "be made", errno);
}

}  // namespace

int FileOps::open(const char* path, int flags, unsigned mode) {
  return ::open(path, flags, mode);
}
ssize_t FileOps::write(int fd, const void* data, size_t size) {
  return ::write(fd, data, size);
}
int FileOps::exchange(const char* one, const char* other) {
  return ::renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
}
int FileOps::fsync(int fd) {
  return ::fsync(fd);
}
int FileOps::close(int fd) {
  return ::close(fd);
}
int FileOps::rename(const char* from, const char* to) {
  return ::rename(from, to);
}
int FileOps::mkdir(const char* path, unsigned mode) {
  return ::mkdir(path, mode);
}

FileOps& posix_file_ops() {
  static FileOps ops;
  return ops;
}

AtomicFile::AtomicFile(fs::path path, FileOps& ops)
    : path_(std::move(path)), temporary_(temporary_beside(path_)), ops_(ops) {
  fd_ = open_retrying(ops_, temporary_, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_environment(path_, "be created", errno);
  pending_ = true;
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ops_.close(fd_);
  if (pending_) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(std::string_view action, int error) {
  if (fd_ >= 0) ops_.close(std::exchange(fd_, -1));
  if (std::exchange(pending_, false)) ::unlink(temporary_.c_str());
  fail_environment(path_, action, error);
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (fd_ < 0) throw std::logic_error("AtomicFile::write after commit or failure: " + path_.string());
  // Linux writes at most 2 GiB a call; smaller pieces also keep the checksum's reads in cache.
  constexpr size_t kPiece = size_t{1} << 20;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPiece));
    const ssize_t count = ops_.write(fd_, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("be written", count < 0 ? errno : EIO);
    const auto written = piece.first(static_cast<size_t>(count));
    checksum_ = crc32c(written, checksum_);
    bytes_written_ += written.size();
    bytes = bytes.subspan(written.size());
  }
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void AtomicFile::commit() {
  if (fd_ < 0) throw std::logic_error("AtomicFile::commit after commit or failure: " + path_.string());
  if (fsync_retrying(ops_, fd_) != 0) fail("be fsynced", errno);
  // A network file system may report a full disk here only.
  if (close_once(ops_, std::exchange(fd_, -1)) != 0) fail("be closed", errno);
  if (ops_.rename(temporary_.c_str(), path_.c_str()) != 0) fail("be renamed into place", errno);
  pending_ = false;
  fsync_path(ops_, parent_of(path_), true);
}

void write_file_atomic(const fs::path& path, std::string_view text, FileOps& ops) {
  AtomicFile file(path, ops);
  file.write(text);
  file.commit();
}

AtomicDirectory::AtomicDirectory(fs::path target, FileOps& ops, Existing existing)
    : target_(without_trailing_slash(std::move(target))), temporary_(temporary_beside(target_)), ops_(ops) {
  std::error_code error;
  const bool folder = fs::is_directory(target_, error);
  const bool may_stand = folder && (existing == Existing::kReplace || fs::is_empty(target_, error));
  if (fs::exists(target_, error) && !may_stand) {
    throw bad_input(target_.string(), folder ? "a folder that is not empty" : "a file",
                    existing == Existing::kReplace ? "a folder" : "a new or an empty folder");
  }
  make_parents(ops_, target_.parent_path());
  // Of a dead process that had our id.
  fs::remove_all(temporary_, error);
  if (ops_.mkdir(temporary_.c_str(), 0777) != 0) fail_environment(target_, "be made", errno);
}

AtomicDirectory::~AtomicDirectory() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
  if (committed_) throw std::logic_error("AtomicDirectory::commit called twice: " + target_.string());
  std::error_code error;
  for (fs::recursive_directory_iterator entry(temporary_, error), end; entry != end; entry.increment(error)) {
    const bool is_folder = entry->is_directory(error);
    if (is_folder || entry->is_regular_file(error)) fsync_path(ops_, entry->path(), is_folder);
  }
  if (error) fail_environment(temporary_, "be listed", error.value());
  fsync_path(ops_, temporary_, true);
  const fs::path replaced = replace_folder(temporary_, target_, ops_);
  committed_ = true;
  fsync_path(ops_, parent_of(target_), true);
  if (!replaced.empty()) fs::remove_all(replaced, error);
}

fs::path replace_folder(const fs::path& made, const fs::path& target, FileOps& ops) {
  std::error_code missing;
  if (!fs::is_directory(target, missing) || fs::is_empty(target, missing)) {
    if (ops.rename(made.c_str(), target.c_str()) != 0)
      fail_environment(target, "be renamed into place", errno);
    return {};
  }
  if (ops.exchange(made.c_str(), target.c_str()) == 0) return made;
  if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) fail_environment(target, "be replaced", errno);
  // A file system that cannot exchange: for a moment there is neither.
  const fs::path aside = temporary_beside(target.parent_path() / (target.filename().string() + "-old"));
  if (ops.rename(target.c_str(), aside.c_str()) != 0) fail_environment(target, "be replaced", errno);
  if (ops.rename(made.c_str(), target.c_str()) == 0) return aside;
  const int error = errno;
  ops.rename(aside.c_str(), target.c_str());
  fail_environment(target, "be replaced", error);
}

uint64_t free_disk_bytes(const fs::path& path) {
  std::error_code error;
  fs::path existing = fs::absolute(without_trailing_slash(path), error);
  while (!existing.empty() && !fs::exists(existing, error) && existing != existing.parent_path()) {
    existing = existing.parent_path();
  }
  const fs::space_info space = fs::space(existing, error);
  if (error) {
    throw EnvironmentError(
        fmt::format("{}: free space cannot be read: {}", existing.string(), error.message()));
  }
  return space.available;
}

}  // namespace satune
