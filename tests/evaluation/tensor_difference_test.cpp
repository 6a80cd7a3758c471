#include "evaluation/tensor_difference.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace satune {
namespace {

TEST(TensorDifference, EqualTensorsAgree) {
  const at::Tensor a = at::arange(6, at::kFloat).view({2, 3});
  const TensorDifference difference = compare_tensors(a, a, {0, 0});
  EXPECT_FALSE(difference.first);
  EXPECT_EQ(difference.max_absolute, 0);
  EXPECT_EQ(difference.relative_l2, 0);
  EXPECT_EQ(difference.elements, 6);
}

TEST(TensorDifference, NamesTheFirstElementBeyondTheTolerance) {
  const at::Tensor reference = at::full({2, 3, 4}, 10.0, at::kDouble);
  at::Tensor value = reference.clone();
  value[0][1][2] = 10.0009;  // within 1e-4 relative + 0
  value[1][0][3] = 10.25;
  value[1][2][1] = 9.0;
  const TensorDifference difference = compare_tensors(value, reference, {1e-4, 0});
  ASSERT_TRUE(difference.first);
  EXPECT_EQ(difference.first->index, (std::vector<int64_t>{1, 0, 3}));
  EXPECT_DOUBLE_EQ(difference.first->value, 10.25);
  EXPECT_DOUBLE_EQ(difference.first->reference, 10.0);
  EXPECT_EQ(difference.beyond_tolerance, 2);
  EXPECT_DOUBLE_EQ(difference.max_absolute, 1.0);
  EXPECT_NEAR(difference.relative_l2, std::sqrt((0.0009 * 0.0009 + 0.0625 + 1.0) / 2400.0), 1e-12);
}

TEST(TensorDifference, ByItsNormTheWholeTensorIsJudged) {
  const at::Tensor reference = at::full({4, 4}, 1e-6, at::kFloat);
  at::Tensor value = reference.clone();
  value[1][2] += 1e-8;
  value[3][0] += 4e-8;
  const double relative = std::sqrt(1.0 + 16.0) * 1e-8 / 4e-6;
  const TensorDifference within = compare_tensors(value, reference, {.relative_l2 = 1.01 * relative});
  EXPECT_FALSE(within.first);
  EXPECT_NEAR(within.relative_l2, relative, 1e-4 * relative);
  const TensorDifference beyond = compare_tensors(value, reference, {.relative_l2 = 0.99 * relative});
  ASSERT_TRUE(beyond.first);
  EXPECT_EQ(beyond.first->index, (std::vector<int64_t>{3, 0})) << "the largest difference";
  value[0][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(compare_tensors(value, reference, {.relative_l2 = 1e9}).first);
  const at::Tensor infinite = at::full({2}, std::numeric_limits<float>::infinity());
  EXPECT_FALSE(compare_tensors(infinite, infinite, {.relative_l2 = 0}).first);
}

TEST(TensorDifference, NotANumberParts) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const at::Tensor zeros = at::zeros({3}, at::kDouble);
  at::Tensor damaged = zeros.clone();
  damaged[1] = nan;
  EXPECT_EQ(compare_tensors(damaged, zeros, {1e9, 1e9}).first->index, (std::vector<int64_t>{1}));
  EXPECT_TRUE(std::isnan(compare_tensors(damaged, zeros, {1, 1}).max_absolute));
  EXPECT_TRUE(compare_tensors(zeros, damaged, {1e9, 1e9}).first);
  damaged[1] = infinity;
  EXPECT_TRUE(compare_tensors(zeros, damaged, {1e9, 1e9}).first);
  EXPECT_FALSE(compare_tensors(damaged, damaged, {0, 0}).first);
}

}  // namespace
}  // namespace satune
