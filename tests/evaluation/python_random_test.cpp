#include "evaluation/python_random.h"

#include <gtest/gtest.h>

namespace satune {
namespace {

using Indices = std::vector<int64_t>;

// Expected values: CPython 3.11, r = random.Random(1234); r.sample(range(n), k).
TEST(PythonRandom, DrawsWhatPythonDraws) {
  PythonRandom random(1234);
  EXPECT_EQ(random.sample(7473, 5), (Indices{6374, 3610, 957, 61, 742}));
  EXPECT_EQ(random.sample(10, 3), (Indices{9, 0, 1}));
  EXPECT_EQ(random.sample(21, 5), (Indices{3, 11, 7, 0, 17}));
  EXPECT_EQ(random.sample(22, 5), (Indices{0, 11, 20, 19, 15}));
  EXPECT_EQ(random.sample(85, 6), (Indices{78, 59, 19, 11, 23, 14}));
  EXPECT_EQ(random.sample(84, 6), (Indices{1, 64, 62, 31, 8, 69}));
  EXPECT_EQ(random.sample(100000, 8), (Indices{61066, 8987, 78835, 88490, 11656, 67507, 75891, 6024}));
  EXPECT_EQ(random.sample(5, 5), (Indices{2, 0, 4, 1, 3}));
  EXPECT_EQ(random.sample(3, 1), (Indices{1}));
  PythonRandom other(7);
  for (int i = 0; i < 300; ++i) other.sample(1000, 5);  // past the first 624 words
  EXPECT_EQ(other.sample(1000, 5), (Indices{942, 63, 263, 199, 765}));
}

}  // namespace
}  // namespace satune
