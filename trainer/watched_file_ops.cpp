#include "trainer/watched_file_ops.h"

#include <cerrno>

namespace satune {
namespace {

/// begin_file_call() and end_file_call() around a scope; leaves errno as the call did.
class InFileCall {
 public:
  InFileCall(Coordinator& coordinator, const char* call, const std::string& path)
      : coordinator_(coordinator), id_(coordinator.begin_file_call(call + (" of " + path))) {}
  ~InFileCall() {
    const int error = errno;
    coordinator_.end_file_call(id_);
    errno = error;
  }
  InFileCall(const InFileCall&) = delete;
  InFileCall& operator=(const InFileCall&) = delete;

 private:
  Coordinator& coordinator_;
  const int64_t id_;
};

}  // namespace

std::string WatchedFileOps::path_of(int fd) {
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(fd);
  return found == open_.end() ? "a file" : found->second;
}

int WatchedFileOps::open(const char* path, int flags, unsigned mode) {
  const InFileCall in(coordinator_, "open", path);
  const int fd = calls_.open(path, flags, mode);
  if (fd >= 0) {
    const std::lock_guard lock(mutex_);
    open_[fd] = path;
  }
  return fd;
}

ssize_t WatchedFileOps::write(int fd, const void* data, size_t size) {
  const InFileCall in(coordinator_, "write", path_of(fd));
  return calls_.write(fd, data, size);
}

int WatchedFileOps::fsync(int fd) {
  const InFileCall in(coordinator_, "fsync", path_of(fd));
  return calls_.fsync(fd);
}

int WatchedFileOps::close(int fd) {
  const InFileCall in(coordinator_, "close", path_of(fd));
  {
    // Before the call: its number may be another file's right after it.
    const std::lock_guard lock(mutex_);
    open_.erase(fd);
  }
  return calls_.close(fd);
}

int WatchedFileOps::rename(const char* from, const char* to) {
  const InFileCall in(coordinator_, "rename", from);
  return calls_.rename(from, to);
}

int WatchedFileOps::exchange(const char* one, const char* other) {
  const InFileCall in(coordinator_, "rename", one);
  return calls_.exchange(one, other);
}

int WatchedFileOps::mkdir(const char* path, unsigned mode) {
  const InFileCall in(coordinator_, "mkdir", path);
  return calls_.mkdir(path, mode);
}

}  // namespace satune
