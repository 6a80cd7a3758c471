#include "evaluation/answer_text.h"

#include <gtest/gtest.h>

#include "tests/evaluation/fixtures.h"

namespace satune {
namespace {

struct Written {
  std::vector<std::string> pieces;
  std::string text;
  std::optional<std::string> stop;
  size_t appended = 0;
};

/// A token a byte, until the text says that it has ended.
Written written(std::string_view bytes, const std::vector<std::string>& stops) {
  const ByteTokenizer tokenizer;
  Written result;
  AnswerText text(tokenizer, {}, stops, [&](std::string_view piece) { result.pieces.emplace_back(piece); });
  for (const int32_t token : tokenizer.encode(bytes)) {
    ++result.appended;
    if (!text.append(token)) break;
  }
  text.finish();
  for (const std::string& piece : result.pieces) result.text += piece;
  EXPECT_EQ(result.text, text.text());
  result.stop = text.stop();
  return result;
}

TEST(AnswerText, WithoutStopsIsAStream) {
  EXPECT_EQ(written("a\xC3\xA9z", {}).pieces, (std::vector<std::string>{"a", "\xC3\xA9", "z"}));
}

/// pain: half of a stop string on the screen.
TEST(AnswerText, NothingOfAStopThatStraddlesTokensIsWritten) {
  const Written result = written("ab\n\nQ: more", {"\n\nQ:"});
  EXPECT_EQ(result.pieces, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(result.stop, "\n\nQ:");
  EXPECT_EQ(result.appended, 6u);
}

TEST(AnswerText, WhatOnlyBeganLikeAStopIsWritten) {
  const Written result = written("a\n\nb\n", {"\n\nQ:"});
  EXPECT_EQ(result.pieces, (std::vector<std::string>{"a", "\n\nb", "\n"}));
  EXPECT_EQ(result.stop, std::nullopt);
}

TEST(AnswerText, TheFirstOfSeveralStopsCounts) {
  EXPECT_EQ(written("xaab", {"b", "aab"}).text, "x");
  EXPECT_EQ(written("xaab", {"b", "aab"}).stop, "aab");
  EXPECT_EQ(written("one. two", {"two", ".", "one. x"}).text, "one");
  EXPECT_EQ(written("stop", {"stop"}).text, "");
}

TEST(AnswerText, StopsOfSeveralBytesACharacter) {
  const Written result = written("x\xE2\x82\xAC\xE2\x82\xAA!", {"\xE2\x82\xAA"});
  EXPECT_EQ(result.pieces, (std::vector<std::string>{"x", "\xE2\x82\xAC"}));
  EXPECT_EQ(result.stop, "\xE2\x82\xAA");
}

}  // namespace
}  // namespace satune
