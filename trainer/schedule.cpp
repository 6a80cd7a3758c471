#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace satune {

Schedule::Schedule(const Settings& settings, int64_t warmup_steps, int64_t total_steps)
    : type_(settings.lr_scheduler_type),
      warmup_type_(settings.lr_warmup_type),
      peak_(settings.learning_rate),
      start_ratio_(settings.warmup_start_ratio),
      min_ratio_(settings.min_lr_ratio),
      warmup_steps_(warmup_steps),
      total_steps_(total_steps) {}

double Schedule::warmup(double progress) const {
  if (warmup_type_ == WarmupType::kLog) return std::pow(start_ratio_, 1.0 - progress);
  return start_ratio_ + (1.0 - start_ratio_) * progress;
}

double Schedule::decay(double progress) const {
  const double left = std::clamp(1.0 - progress, 0.0, 1.0);
  switch (type_) {
    case SchedulerType::kConstant:
      return 1.0;
    case SchedulerType::kLinear:
      return min_ratio_ + (1.0 - min_ratio_) * left;
    case SchedulerType::kCosine:
      break;
  }
  const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * (1.0 - left)));
  return min_ratio_ + (1.0 - min_ratio_) * cosine;
}

double Schedule::learning_rate(int64_t finished_steps) const {
  if (finished_steps < warmup_steps_) {
    return peak_ * warmup(static_cast<double>(finished_steps) / static_cast<double>(warmup_steps_));
  }
  const auto length = static_cast<double>(std::max<int64_t>(1, total_steps_ - warmup_steps_));
  return peak_ * decay(static_cast<double>(finished_steps - warmup_steps_) / length);
}

}  // namespace satune
