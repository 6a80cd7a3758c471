// TensorBoard's event files. Framing: TFRecord (length, masked CRC-32C of the length, bytes, masked CRC-32C
// of the bytes; tensorflow/core/lib/io/record_writer). Content: the Event message of
// tensorflow/core/util/event.proto, of which a few fields are encoded by hand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainer/append_file.h"

namespace satune {

class EventFile {
 public:
  /// Starts a new file in `folder`, named as TensorBoard expects. `last_step` > 0 marks a resume: readers
  /// then drop what older files of the folder hold about later steps. Never throws (see AppendFile).
  EventFile(const std::filesystem::path& folder, int64_t last_step, FileOps& ops = posix_file_ops());

  /// One event with scalar values by tag ("train/loss").
  void write_scalars(int64_t step, const std::vector<std::pair<std::string_view, double>>& scalars);

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

/// Encodings, for the tests.
std::string tfrecord(std::string_view bytes);
std::string version_event(double wall_time);
std::string session_start_event(double wall_time, int64_t step);
std::string scalar_event(double wall_time, int64_t step,
                         const std::vector<std::pair<std::string_view, double>>& scalars);

}  // namespace satune
