// What a person sees of a run: a bar with loss, tokens/s and time left on a terminal, plain lines otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "trainer/metrics.h"

namespace satune {

class Progress {
 public:
  /// `total_steps` of the run. Writes to `out` and is a bar where that is a terminal (and
  /// a line that stays for every evaluation), else one line every
  /// `logging_steps` steps (and for the last one, and where evaluated).
  Progress(int64_t total_steps, int64_t logging_steps, std::FILE* out = stderr);
  ~Progress();  ///< ends the bar's line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepMetrics& metrics);
  /// Clears the bar, so that a log line can be written; the next step() draws it again.
  void clear();

 private:
  bool line_due(const StepMetrics& metrics) const;
  void draw(const StepMetrics& metrics, double seconds_left);

  int64_t total_steps_, logging_steps_;
  std::FILE* out_;
  bool terminal_;
  bool drawn_ = false;
  double step_seconds_ = 0;  ///< smoothed; 0 = none yet
  std::chrono::steady_clock::time_point last_draw_;
};

/// "0:42", "12:05", "3:07:09", "2d 4h".
std::string format_duration(double seconds);
/// "512", "18.4k", "1.84G": powers of 1000, three digits.
std::string format_count(double value);
/// "512 B", "14.9 GiB".
std::string format_bytes(double bytes);

/// The text of a bar of at most `width` columns.
std::string progress_bar(const StepMetrics& metrics, int64_t total_steps, double seconds_left, int width);
/// The plain line.
std::string progress_line(const StepMetrics& metrics, int64_t total_steps, double seconds_left);

}  // namespace satune
