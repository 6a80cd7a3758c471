#include "evaluation/perplexity_windows.h"

#include <gtest/gtest.h>

namespace satune {
namespace {

TEST(PerplexityWindows, StrideOfTheLengthIsLmEvalsRollingWindow) {
  // lm_eval.utils.get_rolling_token_windows(range(1, 11), prefix_token=0, max_seq_len=4, context_len=1) gives
  // ([0,1,2,3],[1,2,3,4]), ([4,5,6,7],[5,6,7,8]), ([6,7,8,9],[9,10]).
  const auto windows = perplexity_windows(11, 4, 4);
  const std::vector<PerplexityWindow> expected = {{0, 4, 0}, {4, 8, 4}, {6, 10, 8}};
  EXPECT_EQ(windows, expected);
}

TEST(PerplexityWindows, SmallerStrideSlides) {
  const std::vector<PerplexityWindow> expected = {{0, 6, 0}, {2, 8, 6}, {3, 9, 8}};
  EXPECT_EQ(perplexity_windows(10, 6, 2), expected);
}

TEST(PerplexityWindows, EveryTokenIsCountedOnce) {
  for (int64_t tokens = 0; tokens < 30; ++tokens)
    for (int64_t length = 1; length <= 12; ++length)
      for (int64_t stride = 1; stride <= length; ++stride) {
        std::vector<int> counted(static_cast<size_t>(std::max<int64_t>(tokens, 1)));
        for (const PerplexityWindow& window : perplexity_windows(tokens, length, stride)) {
          ASSERT_LE(window.end - window.begin, length);
          ASSERT_LE(window.begin, window.first_counted);
          ASSERT_LT(window.end, tokens);
          for (int64_t i = window.first_counted; i < window.end; ++i) ++counted[i + 1];
        }
        for (int64_t i = 1; i < tokens; ++i)
          ASSERT_EQ(counted[i], 1) << tokens << " " << length << " " << stride;
      }
}

TEST(PerplexityWindows, LaterTokensKeepTheirContext) {
  for (const PerplexityWindow& window : perplexity_windows(100, 16, 4)) {
    if (window.begin > 0) {
      EXPECT_GE(window.first_counted - window.begin, 12);
    }
  }
}

}  // namespace
}  // namespace satune
