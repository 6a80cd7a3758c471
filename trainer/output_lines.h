// What a process writes, passed on line by line.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace satune {

/// Bytes in, whole lines out: `emit` gets each with its newline, once that has come or at finish(). A line
/// longer than kLongest comes in pieces, so that memory stays bounded.
class OutputLines {
 public:
  static constexpr size_t kLongest = 1 << 20;

  explicit OutputLines(std::function<void(std::string_view line)> emit) : emit_(std::move(emit)) {}

  void add(std::string_view bytes);
  /// What is left becomes a line; afterwards nothing is held.
  void finish();

 private:
  std::function<void(std::string_view)> emit_;
  std::string partial_;
};

/// Reads what is there without waiting. False once the other end has closed and all has been read.
bool read_available(int fd, OutputLines& lines);

/// Writes all of it, as one piece where the system takes that, and waits where the descriptor does not.
/// Whether it could.
bool write_all(int fd, std::string_view text);

}  // namespace satune
