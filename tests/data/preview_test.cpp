#include "data/preview.h"

#include <gmock/gmock.h>

#include "data/batches.h"
#include "tests/data/data_fixtures.h"

namespace satune {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Preview, ShowsTokensBesideTheirTargets) {
  const FakeTokenizer tokenizer;
  Batch batch;
  append_document(batch, std::vector<int32_t>{1, 2}, 1);
  append_document(batch, std::vector<int32_t>{1, 165, 400, 190, 2}, 3);
  const auto lines = preview_lines(batch, 1, tokenizer);
  ASSERT_EQ(lines.size(), 2u + 5u);
  EXPECT_THAT(lines[0], AllOf(HasSubstr("5 tokens"), HasSubstr("2 of them targets")));
  EXPECT_THAT(lines[2], ::testing::MatchesRegex(" +0 +1 \"<s>\" +-> -"));
  EXPECT_THAT(lines[3], ::testing::MatchesRegex(" +1 +165 \"A\" +-> -"));
  EXPECT_THAT(lines[4], ::testing::MatchesRegex(" +2 +400 \"#\\\\n\" +-> +190 \"Z\""));
  EXPECT_THAT(lines[5], ::testing::MatchesRegex(" +3 +190 \"Z\" +-> +2 \"</s>\""));
  EXPECT_THAT(lines[6], ::testing::MatchesRegex(" +4 +2 \"</s>\" +-> -"));
}

TEST(Preview, LeavesOutTheMiddleOfALongDocument) {
  const FakeTokenizer tokenizer;
  Batch batch;
  append_document(batch, std::vector<int32_t>(100, 165), 50);
  const auto lines = preview_lines(batch, 0, tokenizer, 10);
  ASSERT_EQ(lines.size(), 2u + 11u);
  EXPECT_THAT(lines[7], HasSubstr("90 tokens left out"));
  EXPECT_THAT(lines.back(), HasSubstr("    99"));
  EXPECT_EQ(preview_lines(batch, 0, tokenizer, 100).size(), 102u);
  EXPECT_EQ(preview_lines(batch, 0, tokenizer).size(), 102u);
}

TEST(Preview, QuotesWhatATerminalWouldNotShow) {
  EXPECT_EQ(quote_text("a\n\t\r\"\\"), R"("a\n\t\r\"\\")");
  EXPECT_EQ(quote_text("\x1b[0m"), R"("\x1b[0m")");
  EXPECT_EQ(quote_text("\xC3\xA9\xE2\x82"), "\"\xC3\xA9\\xe2\\x82\"");
  EXPECT_EQ(quote_text("\xC2\x85\x7f"), R"("\xc2\x85\x7f")");
  EXPECT_EQ(quote_text(""), "\"\"");
}

}  // namespace
}  // namespace satune
