#include "trainer/append_file.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace satune {
namespace {

// More than this is not kept for later: a run of days must not fill memory because its disk is full.
constexpr size_t kLongestWait = size_t{16} << 20;

}  // namespace

AppendFile::AppendFile(std::filesystem::path path, FileOps& ops) : path_(std::move(path)), ops_(ops) {
  if (!open()) warn(errno);
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ops_.close(fd_);
}

bool AppendFile::open() {
  if (fd_ >= 0) return true;
  const std::filesystem::path folder = path_.parent_path();
  if (!folder.empty() && ops_.mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) return false;
  fd_ = ops_.open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  return fd_ >= 0;
}

bool AppendFile::flush() {
  while (!pending_.empty()) {
    const ssize_t written = ops_.write(fd_, pending_.data(), pending_.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      if (written == 0) errno = ENOSPC;
      return false;
    }
    pending_.erase(0, static_cast<size_t>(written));
  }
  return true;
}

void AppendFile::append(std::string_view bytes) {
  if (pending_.size() + bytes.size() <= kLongestWait) pending_ += bytes;
  if (!open() || !flush()) {
    warn(errno);
  } else if (failing_) {
    failing_ = false;
    spdlog::info("{} can be written again; nothing was lost", path_.string());
  }
}

void AppendFile::warn(int error) {
  if (failing_) return;
  failing_ = true;
  spdlog::warn("{}: {}; the run goes on and tries again at every step", path_.string(), std::strerror(error));
}

}  // namespace satune
