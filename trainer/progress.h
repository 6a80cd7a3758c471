// What a person sees of a run: a bar with loss, tokens/s and time left on a terminal, plain lines otherwise.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "trainer/metrics.h"

namespace satune {

class Progress {
 public:
  /// `total_steps` of the run; `first_step` is 0 or the step resumed from. Writes to `out` (stderr) and is a
  /// bar where that is a terminal, else one line every `logging_steps` steps (and for the last one).
  Progress(int64_t total_steps, int64_t first_step, int64_t logging_steps, std::FILE* out = stderr);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepMetrics& metrics);
  /// Clears the bar, so that a log line can be written; the next step() draws it again.
  void clear();

 private:
  int64_t total_steps_, first_step_, logging_steps_;
  std::FILE* out_;
  bool terminal_;
  bool drawn_ = false;
  double seconds_ = 0;  ///< smoothed seconds per step
};

/// "0:42", "12:05", "3:07:09", "2d 4h".
std::string format_duration(double seconds);
/// "1.84G", "512", in powers of 1000.
std::string format_count(double value);
/// "14.9 GiB".
std::string format_bytes(double bytes);

/// The text of a bar of `width` columns.
std::string progress_bar(const StepMetrics& metrics, int64_t total_steps, double seconds_left, int width);
/// The plain line.
std::string progress_line(const StepMetrics& metrics, int64_t total_steps, double seconds_left);

}  // namespace satune
