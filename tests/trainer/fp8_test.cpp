// Runs whose layer projections are products of 8-bit floats.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>

#include "data/files/error.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/dry_run.h"
#include "trainer/fp8_trial.h"
#include "trainer/run_plan.h"
#include "trainer/snapshot.h"
#include "trainer/snapshot_store.h"

namespace satune::trainer_test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Fp8Trial, TheCpuPasses) {
  const double error = fp8_error(at::kCPU);
  EXPECT_LT(error, 4e-3);
  EXPECT_GT(error, 0) << "not compared with itself";
}

TEST(Fp8Trial, ACardPasses) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  EXPECT_LT(fp8_error(at::kCUDA), 1e-2);
}

TEST(Fp8Trial, ADeviceThatFailsIsNamed) {
  const TinyRun tiny;
  const Settings settings = tiny.settings("unused", {"fp8=true", "precision=bf16"});
  const auto failing = [](at::Device) -> double { throw std::runtime_error("no kernel image\nstack"); };
  EXPECT_THAT(error_of<EnvironmentError>([&] { check_fp8(settings, at::kCPU, failing); }),
              AllOf(HasSubstr("fp8: found"), HasSubstr("(no kernel image)"), HasSubstr("8.9")));
  for (const double wrong : {0.3, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THAT(
        error_of<EnvironmentError>([&] { check_fp8(settings, at::kCPU, [&](at::Device) { return wrong; }); }),
        HasSubstr("off the reference"));
  }
  check_fp8(settings, at::kCPU);
  check_fp8(tiny.settings("unused"), at::kCPU, failing);  // which nobody asks
}

TEST(Fp8, ARunTrainsAndContinuesToTheBit) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train("plain", {"precision=bf16"}), kExitOk);
  ASSERT_EQ(tiny.train("whole", {"precision=bf16", "fp8=true"}), kExitOk);
  const std::vector<std::string> parts = {"precision=bf16", "fp8=true", "gradient_checkpointing=selective",
                                          "save_steps=5"};
  ASSERT_EQ(tiny.train("parts", parts), kExitOk);
  // As if it had been killed half-way.
  std::filesystem::remove_all(tiny.output("parts") / "snapshots" / snapshot_name(10));
  ASSERT_EQ(tiny.train("parts", parts), kExitOk);
  EXPECT_EQ(repeatable_rows(tiny.output("parts")), repeatable_rows(tiny.output("whole")));
  const auto plain = metric_rows(tiny.output("plain")), whole = metric_rows(tiny.output("whole"));
  ASSERT_EQ(plain.size(), whole.size());
  double apart = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double ratio = whole[i].at("loss").get<double>() / plain[i].at("loss").get<double>();
    apart = std::max(apart, std::fabs(ratio - 1));
  }
  EXPECT_GT(apart, 0);
  EXPECT_LT(apart, 0.02);
  EXPECT_THAT(error_of<BadInput>([&] {
                tiny.train("whole", {"precision=bf16", "max_steps=12"});
              }),
              HasSubstr("fp8"));
}

TEST(Fp8, SettingsThatCannotHaveItAreRefused) {
  const TinyRun tiny;
  for (const char* precision : {"fp32", "fp16"}) {
    EXPECT_THAT(error_of<BadInput>([&] {
                  tiny.settings("unused", {std::string("precision=") + precision, "fp8=true"});
                }),
                HasSubstr(std::string("fp8: found true with precision \"") + precision));
  }
}

}  // namespace
}  // namespace satune::trainer_test
