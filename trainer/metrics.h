// What a run writes down about its steps: metrics.jsonl (one row a step, valid JSON always) and TensorBoard
// events. A sink that fails (disk full, folder gone) warns once and is left out; it never ends a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "data/files/atomic_file.h"

namespace satune {

/// One optimizer step. Unset and non-finite values become null or are left out; never invalid JSON.
struct StepMetrics {
  int64_t step = 0;                ///< 1-based
  double loss = 0;                 ///< mean over the global batch's target tokens
  double grad_norm = 0;            ///< global, before clipping
  double learning_rate = 0;        ///< that of this step's update
  double epoch = 0;                ///< epochs completed after this step, as a fraction
  int64_t num_tokens = 0;          ///< tokens processed since the start of the run, all ranks
  double mean_token_accuracy = 0;  ///< targets that were the argmax / targets
  double tokens_per_s = 0;
  std::optional<double> mfu;  ///< share of the device's peak; unset where the peak is not known
  int64_t peak_memory_bytes = 0;
  double step_seconds = 0;
  std::optional<double> eval_loss;                                                 ///< where evaluated
  std::optional<double> device_power_w, device_temperature_c, device_utilisation;  ///< where there is a card
};

class EventFile;

class MetricsLog {
 public:
  /// Opens <run_folder>/metrics.jsonl for appending and a new event file in <run_folder>/tensorboard/. Rows
  /// of steps after `last_step` (0 for a fresh run) and a torn last line are cut first, atomically.
  MetricsLog(const std::filesystem::path& run_folder, int64_t last_step, FileOps& ops = posix_file_ops());
  ~MetricsLog();

  /// Appends and flushes. Call it once per step, after the step's evaluation where there is one.
  void record(const StepMetrics& metrics);

 private:
  void write_row(const StepMetrics& metrics);
  void write_events(const StepMetrics& metrics);

  std::filesystem::path path_;
  FileOps& ops_;
  int fd_ = -1;
  std::unique_ptr<EventFile> events_;
};

/// The row as a line of JSON, without the newline.
std::string metrics_row(const StepMetrics& metrics);

/// Rewrites metrics.jsonl without rows of steps > last_step, repeated steps (the first stands) and lines that
/// are not JSON. Nothing happens when there is nothing to cut. Throws EnvironmentError.
void cut_metrics(const std::filesystem::path& file, int64_t last_step, FileOps& ops = posix_file_ops());

}  // namespace satune
