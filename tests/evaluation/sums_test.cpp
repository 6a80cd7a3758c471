#include "evaluation/sums.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace satune {
namespace {

TEST(RatioSums, RatioOfSumsNotMeanOfRatios) {
  RatioSums sums;
  sums.add(2.0, 1.0);
  sums.add(10.0, 9.0);
  EXPECT_DOUBLE_EQ(sums.ratio(), 1.2);
}

TEST(RatioSums, StandardErrorOfAProportionIsThatOfAMean) {
  RatioSums sums;
  for (const double hit : {1, 1, 0, 1, 0, 0, 1, 1, 1, 1}) sums.add(hit, 1.0);
  // Sample standard deviation over sqrt(n): sqrt(p (1 - p) / (n - 1)).
  EXPECT_NEAR(*sums.standard_error(), std::sqrt(0.7 * 0.3 / 9), 1e-12);
}

TEST(RatioSums, StandardErrorOfARatioFollowsItsDefinition) {
  const std::vector<std::pair<double, double>> items = {{3.5, 2}, {8, 5}, {1.25, 1}, {12, 7}};
  RatioSums sums;
  for (const auto& [value, weight] : items) sums.add(value, weight);
  double squares = 0;
  for (const auto& [value, weight] : items) squares += std::pow(value - sums.ratio() * weight, 2);
  EXPECT_NEAR(*sums.standard_error(), std::sqrt(4.0 / 3.0 * squares) / 15.0, 1e-12);
}

TEST(RatioSums, SharesAddUpToTheWhole) {
  RatioSums whole, first, second;
  for (int i = 0; i < 7; ++i) {
    whole.add(0.25 * i, 1.0 + i);
    (i % 2 == 0 ? first : second).add(0.25 * i, 1.0 + i);
  }
  first += second;
  EXPECT_EQ(first.items, whole.items);
  EXPECT_DOUBLE_EQ(first.ratio(), whole.ratio());
  EXPECT_NEAR(*first.standard_error(), *whole.standard_error(), 1e-12);
}

TEST(RatioSums, NothingIsNotANumber) {
  RatioSums sums;
  EXPECT_TRUE(std::isnan(sums.ratio()));
  EXPECT_FALSE(sums.standard_error());
  sums.add(1.0, 1.0);
  EXPECT_FALSE(sums.standard_error());
}

}  // namespace
}  // namespace satune
