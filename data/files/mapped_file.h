// A file read through memory: pages come in when touched and can be given back.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace satune {

/// Read-only memory map of a whole file. Move-only; unmaps in the destructor. An empty file maps to an
/// empty span. Throws BadInput when the path is missing, a directory or unreadable.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

  /// Tells the kernel that these bytes will not be read again soon, so that they do not count as resident
  /// memory of the process. They can still be read (and are then fetched anew).
  void release(std::span<const std::byte> range) const;

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

/// Whether there is something at `path`. Throws BadInput when that cannot be told, as in a folder that may
/// not be searched.
bool file_exists(const std::filesystem::path& path);

/// The whole file as a string, for small files. Throws as MappedFile does.
std::string read_text_file(const std::filesystem::path& path);

}  // namespace satune
