// What a run writes down about its steps: metrics.jsonl (one row a step, valid JSON always) and TensorBoard
// events. A sink that fails (disk full, folder gone) warns once and never ends a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/files/atomic_file.h"

namespace satune {

/// One optimizer step. Numbers that are not finite are written as null; unset ones are left out.
struct StepMetrics {
  int64_t step = 0;                ///< 1-based
  double loss = 0;                 ///< mean over the global batch's target tokens
  double grad_norm = 0;            ///< global, before clipping
  double learning_rate = 0;        ///< that of this step's update
  double epoch = 0;                ///< epochs completed after this step, as a fraction
  int64_t num_tokens = 0;          ///< tokens processed since the start of the run, all ranks
  double mean_token_accuracy = 0;  ///< targets that were the argmax / targets
  double tokens_per_s = 0;
  std::optional<double> mfu;  ///< share of the devices' 16-bit peak (device_metrics.h); null where not known
  int64_t peak_memory_bytes = 0;
  double step_seconds = 0;
  std::optional<double> eval_loss;  ///< where evaluated
  /// Bytes that rank 0 sent to others in this step (ProcessGroup::traffic); where there are others.
  std::optional<double> sent_reduced_bytes, sent_gathered_bytes, sent_other_bytes;
  /// Where there is a card; utilisation in per cent.
  std::optional<double> device_power_w, device_temperature_c, device_utilisation;
};

/// The row as a line of JSON, without the newline.
std::string metrics_row(const StepMetrics& metrics);

/// Rewrites metrics.jsonl (atomically) without rows of steps > last_step, rows of a step that stood before,
/// and lines that are not rows (a torn last one). Nothing happens when there is nothing to cut or no file.
/// Returns how many rows are left. Throws EnvironmentError.
int64_t cut_metrics(const std::filesystem::path& file, int64_t last_step, FileOps& ops = posix_file_ops());

class AppendFile;
class EventFile;

class MetricsLog {
 public:
  /// Cuts <run_folder>/metrics.jsonl to `last_step` (0 for a fresh run) and opens it for appending, and a new
  /// event file in <run_folder>/tensorboard/. Never throws: what fails is warned about, and rows that are
  /// missing.
  MetricsLog(const std::filesystem::path& run_folder, int64_t last_step, FileOps& ops = posix_file_ops());
  ~MetricsLog();

  /// Appends and flushes. Call it once per step, after the step's evaluation where there is one.
  void record(const StepMetrics& metrics);

 private:
  std::unique_ptr<AppendFile> rows_;  ///< null where old rows could not be cut: a step never stands twice
  std::unique_ptr<EventFile> events_;
};

}  // namespace satune
