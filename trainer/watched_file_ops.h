// The system calls of what a run saves, each known to the coordinator while it is inside: a call that never
// returns (a dead mount) keeps every rank waiting, and is named like any other stall.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "data/files/atomic_file.h"
#include "trainer/coordinator.h"

namespace satune {

/// Passes every call on to `calls`. For any thread, as `calls` is.
class WatchedFileOps : public FileOps {
 public:
  WatchedFileOps(FileOps& calls, Coordinator& coordinator) : calls_(calls), coordinator_(coordinator) {}

  int open(const char* path, int flags, unsigned mode) override;
  ssize_t write(int fd, const void* data, size_t size) override;
  int fsync(int fd) override;
  int close(int fd) override;
  int rename(const char* from, const char* to) override;
  int exchange(const char* one, const char* other) override;
  int mkdir(const char* path, unsigned mode) override;

 private:
  std::string path_of(int fd);

  FileOps& calls_;
  Coordinator& coordinator_;
  std::mutex mutex_;
  std::map<int, std::string> open_;  ///< paths by descriptor
};

}  // namespace satune
