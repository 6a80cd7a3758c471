#include "data/files/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "data/files/error.h"

namespace satune {
namespace {

// An open file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path) {
    // Before it is opened: that waits for somebody who writes.
    if (std::error_code ignored; std::filesystem::is_fifo(path, ignored)) {
      throw bad_input(path.string(), "no regular file", "a regular file");
    }
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ >= 0) return;
    if (errno == ENOENT || errno == ENOTDIR)
      throw bad_input(path.string(), "no such file", "a readable file");
    throw bad_input(path.string(), fmt::format("a file that does not open ({})", std::strerror(errno)),
                    "a readable file");
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

struct stat status_of_file(const Descriptor& descriptor, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) {
    throw bad_input(path.string(), fmt::format("no status ({})", std::strerror(errno)), "a readable file");
  }
  if (S_ISDIR(status.st_mode)) throw bad_input(path.string(), "a directory", "a file");
  return status;
}

}  // namespace

MappedFile::MappedFile(std::filesystem::path path) : path_(std::move(path)) {
  const Descriptor descriptor(path_);
  const struct stat status = status_of_file(descriptor, path_);
  if (!S_ISREG(status.st_mode)) throw bad_input(path_.string(), "no regular file", "a regular file");
  if (status.st_size == 0) return;
  const auto size = static_cast<size_t>(status.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (address == MAP_FAILED) {
    throw EnvironmentError(
        fmt::format("{}: {} bytes cannot be mapped ({})", path_.string(), size, std::strerror(errno)));
  }
  bytes_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void MappedFile::release(std::span<const std::byte> range) const {
  if (range.empty()) return;
  // Rounded outwards: a neighbour's page that goes along is only read again. Advice, so errors are ignored.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(range.data()) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(range.data() + range.size()) + page - 1) / page * page;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

bool file_exists(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::none)
    throw bad_input(path.string(), fmt::format("what cannot be looked at ({})", error.message()),
                    "a file, or none, in a folder that can be searched");
  return std::filesystem::exists(status);
}

std::string read_text_file(const std::filesystem::path& path) {
  const Descriptor descriptor(path);
  const struct stat status = status_of_file(descriptor, path);
  std::string text;
  text.reserve(static_cast<size_t>(status.st_size));
  char buffer[65536];
  while (true) {
    const ssize_t count = ::read(descriptor.get(), buffer, sizeof(buffer));
    if (count == 0) return text;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw EnvironmentError(fmt::format("{}: cannot be read ({})", path.string(), std::strerror(errno)));
    }
    text.append(buffer, static_cast<size_t>(count));
  }
}

}  // namespace satune
