#include "trainer/snapshot.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <span>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "trainer/descriptor.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kNamePrefix = "step-";

template <typename T>
T field(const Json& json, const char* key, std::string_view source) {
  try {
    return json.at(key).get<T>();
  } catch (const Json::exception&) {
    throw bad_input(fmt::format("{}: {}", source, key),
                    describe_json(json.contains(key) ? &json.at(key) : nullptr), "a value that satune wrote");
  }
}

// Reads and does not map: a sector that the disk cannot read is an error here, and SIGBUS in a mapping.
uint32_t checksum_of_file(const fs::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> buffer(size_t{4} << 20);
  uint32_t checksum = 0;
  for (;;) {
    const ssize_t count = file.is_open() ? ::read(file.get(), buffer.data(), buffer.size()) : -1;
    if (count == 0) return checksum;
    if (count > 0) {
      checksum = crc32c(std::span(buffer).first(static_cast<size_t>(count)), checksum);
    } else if (errno != EINTR || !file.is_open()) {
      throw EnvironmentError(fmt::format("{}: cannot be read: {}", path.string(), std::strerror(errno)));
    }
  }
}

}  // namespace

std::string snapshot_name(int64_t step) {
  return fmt::format("{}{:08}", kNamePrefix, step);
}

int64_t snapshot_step(std::string_view folder_name) {
  if (!folder_name.starts_with(kNamePrefix)) return -1;
  const std::string_view digits = folder_name.substr(kNamePrefix.size());
  int64_t step = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  return whole && step >= 0 && snapshot_name(step) == folder_name ? step : -1;
}

std::string rank_file_name(int64_t rank) {
  return fmt::format("rank-{:05}.safetensors", rank);
}

uint64_t snapshot_bytes(const TensorTable& table, const std::vector<bool>& trained,
                        const std::vector<StoredPart>& parts) {
  int64_t bytes = 0;
  const auto tensors = table.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (trained.empty() || trained[i]) bytes += stored_bytes(parts, tensors[i].numel());
  }
  return static_cast<uint64_t>(bytes) + (uint64_t{1} << 20);
}

Json manifest_json(int64_t step, const std::vector<ManifestEntry>& files) {
  Json list = Json::array();
  for (const ManifestEntry& file : files) {
    list.push_back(
        {{"name", file.name}, {"size", file.size}, {"crc32c", fmt::format("{:08x}", file.checksum)}});
  }
  return {{"format", "satune-snapshot"}, {"version", 1}, {"step", step}, {"files", std::move(list)}};
}

std::vector<ManifestEntry> read_manifest(const fs::path& snapshot) {
  const fs::path path = snapshot / kManifestFile;
  const std::string source = path.string();
  const Json json = read_json_file(path);
  if (field<std::string>(json, "format", source) != "satune-snapshot" ||
      field<int64_t>(json, "version", source) != 1) {
    throw bad_input(source, "another format", "a satune-snapshot of version 1");
  }
  std::vector<ManifestEntry> files;
  for (const Json& entry : field<Json>(json, "files", source)) {
    ManifestEntry file{field<std::string>(entry, "name", source), field<uint64_t>(entry, "size", source), 0};
    const auto hex = field<std::string>(entry, "crc32c", source);
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), file.checksum, 16);
    if (error != std::errc() || end != hex.data() + hex.size() || file.name.find('/') != std::string::npos) {
      throw bad_input(source, describe_json(&entry), "a file name, its size and its checksum");
    }
    std::error_code missing;
    const uint64_t size = fs::file_size(snapshot / file.name, missing);
    if (missing || size != file.size) {
      throw bad_input((snapshot / file.name).string(), missing ? "no file" : fmt::format("{} bytes", size),
                      fmt::format("{} bytes", file.size));
    }
    files.push_back(std::move(file));
  }
  if (files.empty()) throw bad_input(source, "no files", "at least one");
  return files;
}

void verify_checksums(const fs::path& snapshot, const std::vector<ManifestEntry>& files) {
  for (const ManifestEntry& file : files) {
    const uint32_t checksum = checksum_of_file(snapshot / file.name);
    if (checksum != file.checksum) {
      throw bad_input((snapshot / file.name).string(), fmt::format("checksum {:08x}", checksum),
                      fmt::format("{:08x}: the file was changed or damaged", file.checksum));
    }
  }
}

}  // namespace satune
