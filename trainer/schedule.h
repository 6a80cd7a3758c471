// The learning rate as a function of the step.
//
// With s finished steps (0-based step index), W steps of warm-up, N steps in all, peak P, start share a and
// final share m:
//   s < W, linear: P * (a + (1 - a) * s / W)
//   s < W, log:    P * a^(1 - s / W)
//   s >= W, with t = (s - W) / max(1, N - W):
//     cosine:   P * (m + (1 - m) * (1 + cos(pi t)) / 2)
//     linear:   P * (m + (1 - m) * (1 - t))
//     constant: P
// With a = m = 0 these are transformers' get_{cosine,linear}_schedule_with_warmup and
// get_constant_schedule_with_warmup.
#pragma once

#include <cstdint>

#include "trainer/settings.h"

namespace satune {

class Schedule {
 public:
  Schedule(const Settings& settings, int64_t warmup_steps, int64_t total_steps);

  /// Learning rate of the update that follows `finished_steps` steps.
  double learning_rate(int64_t finished_steps) const;

 private:
  double warmup(double progress) const;
  double decay(double progress) const;

  SchedulerType type_;
  WarmupType warmup_type_;
  double peak_, start_ratio_, min_ratio_;
  int64_t warmup_steps_, total_steps_;
};

}  // namespace satune
