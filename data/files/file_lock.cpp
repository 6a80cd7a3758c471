#include "data/files/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace satune {

std::optional<FileLock> FileLock::try_lock(const std::filesystem::path& path, Kind kind) {
  const bool shared = kind == Kind::kShared;
  // NFS turns flock into a record lock, which wants a descriptor that could do what it excludes.
  const int fd = ::open(path.c_str(), (shared ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  FileLock lock(fd);
  int result = 0;
  do {
    result = ::flock(fd, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  const bool unsupported = result != 0 && errno != EWOULDBLOCK;
  if (result != 0 && !(shared && unsupported)) return std::nullopt;
  return lock;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

bool FileLock::is_at(const std::filesystem::path& path) const {
  struct stat ours {
  }, there{};
  return ::fstat(fd_, &ours) == 0 && ::stat(path.c_str(), &there) == 0 && ours.st_dev == there.st_dev &&
         ours.st_ino == there.st_ino;
}

}  // namespace satune
