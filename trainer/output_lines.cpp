#include "trainer/output_lines.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>

namespace satune {

void OutputLines::add(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const size_t count = newline == std::string_view::npos ? bytes.size() : newline + 1;
    partial_.append(bytes.substr(0, count));
    bytes.remove_prefix(count);
    if (partial_.back() == '\n' || partial_.size() >= kLongest) finish();
  }
}

void OutputLines::finish() {
  if (partial_.empty()) return;
  if (partial_.back() != '\n') partial_ += '\n';
  emit_(partial_);
  partial_.clear();
}

bool read_available(int fd, OutputLines& lines) {
  char buffer[1 << 16];
  for (;;) {
    const ssize_t count = ::read(fd, buffer, sizeof(buffer));
    if (count > 0) {
      lines.add({buffer, static_cast<size_t>(count)});
    } else if (count == 0) {
      return false;
    } else if (errno != EINTR) {
      return errno == EAGAIN;
    }
  }
}

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(fd, text.data(), text.size());
    if (count > 0) {
      text.remove_prefix(static_cast<size_t>(count));
    } else if (count < 0 && errno == EAGAIN) {
      pollfd ready{fd, POLLOUT, 0};
      ::poll(&ready, 1, -1);
    } else if (count == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace satune
