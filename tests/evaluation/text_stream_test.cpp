#include "evaluation/text_stream.h"

#include <gtest/gtest.h>

#include "tests/evaluation/fixtures.h"
#include "tests/realdata.h"

namespace satune {
namespace {

struct Streamed {
  std::string text;
  std::vector<std::string> pieces;
};

Streamed stream(const Tokenizer& tokenizer, const std::vector<int32_t>& context,
                const std::vector<int32_t>& tokens) {
  Streamed result;
  TextStream stream(tokenizer, context, [&](std::string_view piece) { result.pieces.emplace_back(piece); });
  for (const int32_t token : tokens) stream.append(token);
  stream.finish();
  for (const std::string& piece : result.pieces) result.text += piece;
  EXPECT_EQ(result.text, stream.text());
  return result;
}

TEST(TextStream, WritesWholeCharactersOnly) {
  const ByteTokenizer tokenizer;
  const Streamed result = stream(tokenizer, {}, tokenizer.encode("a\xC3\xA9\xF0\x9F\x98\x80z"));
  EXPECT_EQ(result.pieces, (std::vector<std::string>{"a", "\xC3\xA9", "\xF0\x9F\x98\x80", "z"}));
}

TEST(TextStream, BytesThatNeverBecomeACharacterAreReplacedInTheEnd) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(stream(tokenizer, {}, tokenizer.encode("ok\xE2\x82")).text, "ok\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(stream(tokenizer, {}, tokenizer.encode("\xFFok")).text, "\xEF\xBF\xBDok");
}

TEST(TextStream, SpecialTokensAreLeftOut) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(stream(tokenizer, {1}, {3 + 'a', 1, 2, 3 + 'b'}).text, "ab");
}

TEST(TextStream, EqualsDecodingAtOnceWithSentencePiece) {
  SATUNE_REALDATA_OR_SKIP(directory, "stories260K_hf");
  const auto tokenizer = load_tokenizer(directory);
  for (const std::string text :
       {"Once upon a time, there was a little girl.", "  two  spaces \n\n new lines\n",
        "caf\xC3\xA9 \xF0\x9F\x98\x80\xF0\x9F\x98\x80 \xE4\xB8\xAD\xE6\x96\x87", " x"}) {
    const std::vector<int32_t> ids = tokenizer->encode(text);
    EXPECT_EQ(stream(*tokenizer, {}, ids).text, tokenizer->decode(ids, true)) << text;
  }
}

TEST(TextStream, ContinuationKeepsTheSpaceBetweenWords) {
  SATUNE_REALDATA_OR_SKIP(directory, "stories260K_hf");
  const auto tokenizer = load_tokenizer(directory);
  std::vector<int32_t> context = {*tokenizer->bos_id()};
  for (const int32_t id : tokenizer->encode("Once upon a")) context.push_back(id);
  EXPECT_EQ(stream(*tokenizer, context, tokenizer->encode("time")).text, " time");
  // A response stands by itself: no space before its first word; nor after BOS alone.
  EXPECT_EQ(stream(*tokenizer, {}, tokenizer->encode("time")).text, "time");
  EXPECT_EQ(stream(*tokenizer, {*tokenizer->bos_id()}, tokenizer->encode("time")).text, "time");
}

}  // namespace
}  // namespace satune
