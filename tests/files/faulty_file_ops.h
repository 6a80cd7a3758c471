// FileOps that fail where a test says.
#pragma once

#include <algorithm>
#include <cerrno>
#include <string>

#include "data/files/atomic_file.h"

namespace satune {

/// Passes calls on, but fails the call number `failing` (from 1; 0 = none) with `error`. A failing close()
/// closes all the same, as Linux does.
class FaultyFileOps : public FileOps {
 public:
  FaultyFileOps(int failing, int error) : failing_(failing), error_(error) {}

  int open(const char* path, int flags, unsigned mode) override {
    return fails("open") ? -1 : FileOps::open(path, flags, mode);
  }
  ssize_t write(int fd, const void* data, size_t size) override {
    if (fails("write")) {
      // Half of it is on the disk already.
      FileOps::write(fd, data, size / 2);
      errno = error_;
      return -1;
    }
    return FileOps::write(fd, data, size);
  }
  int fsync(int fd) override { return fails("fsync") ? -1 : FileOps::fsync(fd); }
  int close(int fd) override {
    const int result = FileOps::close(fd);
    return fails("close") ? -1 : result;
  }
  int rename(const char* from, const char* to) override {
    if (fails("rename")) return -1;
    renamed_ = true;
    return FileOps::rename(from, to);
  }
  int exchange(const char* one, const char* other) override {
    if (fails("exchange")) return -1;
    renamed_ = true;
    return FileOps::exchange(one, other);
  }
  int mkdir(const char* path, unsigned mode) override {
    return fails("mkdir") ? -1 : FileOps::mkdir(path, mode);
  }

  int calls() const { return calls_; }
  bool renamed() const { return renamed_; }
  /// Which call failed; "" if none did.
  const std::string& failed() const { return failed_; }

 private:
  bool fails(const char* call) {
    if (++calls_ != failing_) return false;
    failed_ = call;
    errno = error_;
    return true;
  }

  int failing_, error_, calls_ = 0;
  bool renamed_ = false;
  std::string failed_;
};

/// A disk that is interrupted again and again and takes a few bytes a call.
class InterruptedFileOps : public FileOps {
 public:
  int open(const char* path, int flags, unsigned mode) override {
    return interrupted() ? -1 : FileOps::open(path, flags, mode);
  }
  ssize_t write(int fd, const void* data, size_t size) override {
    return interrupted() ? -1 : FileOps::write(fd, data, std::min<size_t>(size, 3));
  }
  int fsync(int fd) override { return interrupted() ? -1 : FileOps::fsync(fd); }
  int close(int fd) override {
    FileOps::close(fd);
    errno = EINTR;
    return -1;
  }

 private:
  bool interrupted() {
    errno = EINTR;
    return ++calls_ % 2 == 1;
  }
  int calls_ = 0;
};

}  // namespace satune
