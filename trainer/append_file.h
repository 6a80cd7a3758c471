// A log file that is appended to and never in the way: what cannot be written now is kept and tried again
// with the next append, so that a disk that was full for a while costs nothing.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "data/files/atomic_file.h"

namespace satune {

class AppendFile {
 public:
  /// Creates the file (with its folder) or opens it for appending. Never throws: a failure is reported once.
  AppendFile(std::filesystem::path path, FileOps& ops);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// Appends in one write where the system allows it, so a line is there as a whole once this returns. On
  /// failure one warning is logged, and one line when it works again.
  void append(std::string_view bytes);

  const std::filesystem::path& path() const { return path_; }
  /// Bytes that wait for a working disk.
  size_t pending() const { return pending_.size(); }

 private:
  bool open();
  bool flush();
  void warn(int error);

  std::filesystem::path path_;
  FileOps& ops_;
  int fd_ = -1;
  std::string pending_;
  bool failing_ = false;
};

}  // namespace satune
