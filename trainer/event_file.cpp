#include "trainer/event_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstring>

namespace satune {
namespace {

static_assert(std::endian::native == std::endian::little, "event files are little-endian");

// Protobuf wire types.
constexpr uint32_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;
// Field numbers of Event, SessionLog, Summary and Summary.Value.
constexpr uint32_t kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr uint32_t kSessionStatus = 1, kSessionStart = 1;
constexpr uint32_t kSummaryValue = 1, kValueTag = 1, kSimpleValue = 2;

template <class T>
std::string raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7F) | 0x80);
  return bytes + static_cast<char>(value);
}

std::string key(uint32_t field, uint32_t wire_type) {
  return varint(field << 3 | wire_type);
}

std::string bytes_field(uint32_t field, std::string_view bytes) {
  return key(field, kBytes) + varint(bytes.size()) + std::string(bytes);
}

std::string event_head(double wall_time, int64_t step) {
  return key(kWallTime, kFixed64) + raw(wall_time) + key(kStep, kVarint) +
         varint(static_cast<uint64_t>(step));
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(std::as_bytes(std::span(bytes.data(), bytes.size())));
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// events.out.tfevents.SECONDS.HOST.PID.N, the first N that is free: two runs of one second do not meet.
std::filesystem::path new_event_path(const std::filesystem::path& folder) {
  char host[256] = "localhost";
  gethostname(host, sizeof(host) - 1);
  const auto seconds = static_cast<int64_t>(now());
  for (int n = 0;; ++n) {
    auto path = folder / fmt::format("events.out.tfevents.{}.{}.{}.{}", seconds, host, getpid(), n);
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return path;
  }
}

}  // namespace

std::string tfrecord(std::string_view bytes) {
  const std::string length = raw<uint64_t>(bytes.size());
  return length + raw(masked_crc(length)) + std::string(bytes) + raw(masked_crc(bytes));
}

std::string version_event(double wall_time) {
  return key(kWallTime, kFixed64) + raw(wall_time) + bytes_field(kFileVersion, "brain.Event:2");
}

std::string session_start_event(double wall_time, int64_t step) {
  return event_head(wall_time, step) +
         bytes_field(kSessionLog, key(kSessionStatus, kVarint) + varint(kSessionStart));
}

std::string scalar_event(double wall_time, int64_t step,
                         const std::vector<std::pair<std::string_view, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    summary += bytes_field(kSummaryValue, bytes_field(kValueTag, tag) + key(kSimpleValue, kFixed32) +
                                              raw(static_cast<float>(value)));
  }
  return event_head(wall_time, step) + bytes_field(kSummary, summary);
}

EventFile::EventFile(const std::filesystem::path& folder, int64_t last_step, FileOps& ops)
    : file_(new_event_path(folder), ops) {
  std::string head = tfrecord(version_event(now()));
  // The event's own step counts as not yet done: readers drop events of this step and later ones.
  if (last_step > 0) head += tfrecord(session_start_event(now(), last_step + 1));
  file_.append(head);
}

void EventFile::write_scalars(int64_t step, const std::vector<std::pair<std::string_view, double>>& scalars) {
  file_.append(tfrecord(scalar_event(now(), step, scalars)));
}

}  // namespace satune
