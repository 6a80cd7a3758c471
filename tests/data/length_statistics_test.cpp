#include "data/length_statistics.h"

#include <gmock/gmock.h>

#include <numeric>

namespace satune {
namespace {

using ::testing::ElementsAre;

TEST(LengthStatistics, FiguresAreNearestRanks) {
  std::vector<int64_t> lengths(200);
  std::iota(lengths.rbegin(), lengths.rend(), int64_t{1});
  const LengthStatistics s = length_statistics(lengths);
  EXPECT_EQ(s.count, 200);
  EXPECT_EQ(s.sum, 20100);
  EXPECT_EQ(s.shortest, 1);
  EXPECT_EQ(s.median, 100);
  EXPECT_EQ(s.p90, 180);
  EXPECT_EQ(s.p99, 198);
  EXPECT_EQ(s.longest, 200);
}

TEST(LengthStatistics, BarsBeginAndEndWhereTheLengthsDo) {
  const LengthStatistics s = length_statistics({12, 15, 16, 23, 24, 47, 48});
  EXPECT_THAT(s.edges, ElementsAre(12, 16, 24, 32, 48, 64));
  EXPECT_THAT(s.counts, ElementsAre(2, 2, 1, 1, 1));
  const std::vector<std::string> lines = histogram_lines(s, 4, 24);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0], "     12 - 15             2  ####");
  EXPECT_EQ(lines[2], "     24 - 31             1  ## <- max_length 24");
}

TEST(LengthStatistics, OfNothingAndOfZero) {
  EXPECT_TRUE(histogram_lines(length_statistics({}), 40).empty());
  const LengthStatistics zero = length_statistics({0});
  EXPECT_THAT(zero.edges, ElementsAre(0, 8));
  EXPECT_THAT(zero.counts, ElementsAre(1));
}

}  // namespace
}  // namespace satune
