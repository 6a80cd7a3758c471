#include "trainer/loss_scale.h"

#include <gtest/gtest.h>

namespace satune {
namespace {

TEST(LossScale, IsOneWhereNothingIsScaled) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    LossScale scale = LossScale::initial(precision);
    for (int i = 0; i < 5000; ++i) scale.succeed(precision);
    EXPECT_EQ(scale.value, 1);
    EXPECT_EQ(scale.good_steps, 0);
    EXPECT_FALSE(scale.back_off(precision)) << "an overflow is no matter of the scale";
    EXPECT_EQ(scale.value, 1);
  }
}

TEST(LossScale, DoublesAfterTwoThousandGoodStepsInARow) {
  LossScale scale = LossScale::initial(Precision::kFp16);
  EXPECT_EQ(scale.value, 65536);
  for (int i = 0; i < 1999; ++i) scale.succeed(Precision::kFp16);
  EXPECT_EQ(scale.value, 65536);
  scale.succeed(Precision::kFp16);
  EXPECT_EQ(scale.value, 131072);
  EXPECT_EQ(scale.good_steps, 0);
  for (int i = 0; i < 2000; ++i) scale.succeed(Precision::kFp16);
  EXPECT_EQ(scale.value, 262144);
}

TEST(LossScale, HalvesAtAnOverflowAndCountsAnew) {
  LossScale scale = LossScale::initial(Precision::kFp16);
  for (int i = 0; i < 1999; ++i) scale.succeed(Precision::kFp16);
  EXPECT_TRUE(scale.back_off(Precision::kFp16));
  EXPECT_EQ(scale.value, 32768);
  EXPECT_EQ(scale.good_steps, 0);
  for (int i = 0; i < 1999; ++i) scale.succeed(Precision::kFp16);
  EXPECT_EQ(scale.value, 32768) << "steps before the overflow do not count";
  scale.succeed(Precision::kFp16);
  EXPECT_EQ(scale.value, 65536);
}

TEST(LossScale, EndsAtOne) {
  LossScale scale = LossScale::initial(Precision::kFp16);
  int halvings = 0;
  while (scale.back_off(Precision::kFp16)) ++halvings;
  EXPECT_EQ(halvings, 16);
  EXPECT_EQ(scale.value, 1);
  EXPECT_FALSE(scale.back_off(Precision::kFp16)) << "what is not finite now is not the scale's doing";
}

}  // namespace
}  // namespace satune
