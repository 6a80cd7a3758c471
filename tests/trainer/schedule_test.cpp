#include "trainer/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace satune::trainer_test {
namespace {

Settings with(SchedulerType type, double peak = 1.0) {
  Settings settings;
  settings.lr_scheduler_type = type;
  settings.learning_rate = peak;
  return settings;
}

TEST(Schedule, EqualsTransformersCosine) {
  // transformers.get_cosine_schedule_with_warmup(optimizer of lr 1, 3, 10): scheduler.get_last_lr() of steps
  // 0..10.
  const double expected[] = {0,
                             1.0 / 3,
                             2.0 / 3,
                             1,
                             0.9504844339512095,
                             0.8117449009293668,
                             0.6112604669781572,
                             0.3887395330218429,
                             0.1882550990706332,
                             0.04951556604879043,
                             0};
  const Schedule schedule(with(SchedulerType::kCosine), 3, 10);
  for (int step = 0; step <= 10; ++step)
    EXPECT_NEAR(schedule.learning_rate(step), expected[step], 1e-15) << step;
}

TEST(Schedule, EqualsTransformersLinearAndConstant) {
  const Schedule linear(with(SchedulerType::kLinear, 2.0), 2, 6);
  const double expected[] = {0, 1, 2, 1.5, 1, 0.5, 0};
  for (int step = 0; step <= 6; ++step) EXPECT_DOUBLE_EQ(linear.learning_rate(step), expected[step]);
  const Schedule constant(with(SchedulerType::kConstant, 2.0), 2, 6);
  EXPECT_DOUBLE_EQ(constant.learning_rate(1), 1.0);
  for (int step = 2; step <= 6; ++step) EXPECT_DOUBLE_EQ(constant.learning_rate(step), 2.0);
}

TEST(Schedule, EndsAtTheMinimumRatio) {
  for (const SchedulerType type : {SchedulerType::kCosine, SchedulerType::kLinear}) {
    Settings settings = with(type, 2e-5);
    settings.min_lr_ratio = 0.1;
    const Schedule schedule(settings, 0, 100);
    EXPECT_DOUBLE_EQ(schedule.learning_rate(0), 2e-5);
    EXPECT_DOUBLE_EQ(schedule.learning_rate(50), 1.1e-5);
    EXPECT_DOUBLE_EQ(schedule.learning_rate(100), 2e-6);
    EXPECT_DOUBLE_EQ(schedule.learning_rate(1000), 2e-6);
  }
}

TEST(Schedule, LogWarmUpGrowsByOneFactorAStep) {
  Settings settings = with(SchedulerType::kCosine, 2e-5);
  settings.lr_warmup_type = WarmupType::kLog;
  settings.warmup_start_ratio = 0.04;
  const Schedule schedule(settings, 1000, 15000);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(0), 8e-7);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(1000), 2e-5);
  const double factor = schedule.learning_rate(1) / schedule.learning_rate(0);
  EXPECT_NEAR(std::pow(factor, 1000), 25.0, 1e-9);
  EXPECT_NEAR(schedule.learning_rate(501) / schedule.learning_rate(500), factor, 1e-12);
}

}  // namespace
}  // namespace satune::trainer_test
