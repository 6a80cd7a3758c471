#include "trainer/device_metrics.h"

#include <gtest/gtest.h>

#include "model/flops.h"
#include "tests/trainer/tiny_run.h"

namespace satune::trainer_test {
namespace {

const CardLibraries kFake{SATUNE_FAKE_DRIVER, SATUNE_FAKE_DRIVER};
const at::Device kCard(at::kCUDA, 0);

TEST(DeviceMetrics, OfACardThatTheDriverDescribes) {
  const TinyRun tiny;
  const RunPlan plan(tiny.settings("run", {"precision=bf16"}));
  StepMetrics metrics;
  metrics.tokens_per_s = 1e9;
  DeviceMetrics(plan, kCard, 2, kFake).fill(metrics, 100);
  EXPECT_EQ(metrics.device_temperature_c, 61.0);
  EXPECT_EQ(metrics.device_utilisation, 97.0);
  EXPECT_GT(metrics.device_power_w, 400.0);
  const double flops = training_flops_per_token(plan.config(), plan.table(), plan.trained_mask(), 100);
  EXPECT_DOUBLE_EQ(metrics.mfu.value(), flops * 1e9 / (2 * 989.4e12));
}

TEST(DeviceMetrics, Fp32RunsHaveReadingsAndNoMfu) {
  const TinyRun tiny;
  const RunPlan plan(tiny.settings("run", {"precision=fp32"}));
  StepMetrics metrics;
  DeviceMetrics(plan, kCard, 1, kFake).fill(metrics, 100);
  EXPECT_EQ(metrics.device_temperature_c, 61.0);
  EXPECT_FALSE(metrics.mfu);
}

TEST(DeviceMetrics, ACpuHasNeither) {
  const TinyRun tiny;
  const RunPlan plan(tiny.settings("run", {"precision=bf16"}));
  StepMetrics metrics;
  DeviceMetrics(plan, at::kCPU, 1, kFake).fill(metrics, 100);
  EXPECT_FALSE(metrics.mfu || metrics.device_power_w || metrics.device_temperature_c ||
               metrics.device_utilisation);
}

}  // namespace
}  // namespace satune::trainer_test
