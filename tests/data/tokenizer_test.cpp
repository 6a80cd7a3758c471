#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "data/prompt_template.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using ::testing::HasSubstr;

class TokenizerTest : public ::testing::Test {
 protected:
  std::string error_of_loading() const {
    try {
      load_tokenizer(directory_.path());
    } catch (const BadInput& error) {
      EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("\n")));
      return error.what();
    }
    return "loaded";
  }

  TemporaryDirectory directory_;
};

std::vector<std::string> training_texts() {
  std::vector<std::string> texts;
  for (int i = 0; i < 400; ++i) {
    texts.push_back("### Instruction:\nAdd " + std::to_string(i) + " and " + std::to_string(i * 7 % 91) +
                    ".\n\n### Response:\n\tThe sum is " + std::to_string(i + i * 7 % 91) + "; na\xC3\xAFve.");
  }
  return texts;
}

class TrainedTokenizerTest : public TokenizerTest {
 protected:
  void SetUp() override {
    train_sentencepiece(training_texts(), {.vocab_size = 360}, directory_.path());
    tokenizer_ = load_tokenizer(directory_.path());
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TrainedTokenizerTest, HasTheUsualSpecialIds) {
  EXPECT_EQ(tokenizer_->kind(), "sentencepiece");
  EXPECT_EQ(tokenizer_->vocab_size(), 360);
  EXPECT_EQ(tokenizer_->special_id("<unk>"), 0);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  EXPECT_EQ(tokenizer_->special_id("</s>"), 2);
  EXPECT_EQ(tokenizer_->special_id("The"), std::nullopt);
}

TEST_F(TrainedTokenizerTest, TextRoundTripsWithSpacesNewlinesAndUnseenCharacters) {
  for (const std::string text :
       {"Add 5 and 7.", "  two  spaces  ", "line one\nline two\n\n\tindented\r\n", "\n", " ", "",
        "\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\xA6\x99", "a</s>b<s>c<unk>d<0x0A>e"}) {
    const std::vector<int32_t> ids = tokenizer_->encode(text);
    EXPECT_EQ(tokenizer_->decode(ids), text);
    EXPECT_EQ(tokenizer_->decode(ids, true), text);
    EXPECT_THAT(ids, ::testing::Each(::testing::Ge(3))) << text;
  }
}

TEST_F(TrainedTokenizerTest, DigitsAreSplit) {
  const size_t none = tokenizer_->encode("is").size();
  EXPECT_EQ(tokenizer_->encode("is 123").size(), none + 4);  // the space and three digits
}

TEST_F(TrainedTokenizerTest, DecodeShowsOrSkipsSpecialTokens) {
  std::vector<int32_t> ids = {1};
  for (const int32_t id : tokenizer_->encode("The sum")) ids.push_back(id);
  ids.push_back(2);
  EXPECT_EQ(tokenizer_->decode(ids), "<s>The sum</s>");
  EXPECT_EQ(tokenizer_->decode(ids, true), "The sum");
  const std::vector<int32_t> foreign = {-1, 360, 1 << 30};
  EXPECT_EQ(tokenizer_->decode(foreign), "");
}

TEST_F(TrainedTokenizerTest, TokenTextsJoinToTheText) {
  std::string joined;
  const std::string text = "The sum is 12;\n\xF0\x9F\xA6\x99";
  for (const int32_t id : tokenizer_->encode(text)) joined += tokenizer_->token_text(id);
  EXPECT_EQ(joined, " " + text);
  EXPECT_EQ(tokenizer_->token_text(1), "<s>");
  EXPECT_EQ(tokenizer_->token_text(-5), "");
}

TEST_F(TrainedTokenizerTest, IllFormedUtf8IsReplacedOncePerPart) {
  const auto expected = tokenizer_->encode(
      "a\xEF\xBF\xBD"
      "b\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(tokenizer_->encode("a\xE2\x82"
                               "b\xFF\xED"),
            expected);
}

TEST_F(TrainedTokenizerTest, TrainingIsDeterministicAndFingerprintsFollowContent) {
  const std::string first = read_text_file(directory_ / "tokenizer.model");
  const auto again = directory_ / "again", other = directory_ / "other";
  train_sentencepiece(training_texts(), {.vocab_size = 360}, again);
  train_sentencepiece(training_texts(), {.vocab_size = 359}, other);
  EXPECT_EQ(read_text_file(again / "tokenizer.model"), first);
  EXPECT_EQ(load_tokenizer(again)->fingerprint(), tokenizer_->fingerprint());
  EXPECT_NE(load_tokenizer(other)->fingerprint(), tokenizer_->fingerprint());
}

TEST_F(TokenizerTest, TrainingIsQuiet) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  train_sentencepiece(training_texts(), {.vocab_size = 300}, directory_.path());
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(TokenizerTest, TrainingOnTooLittleTextIsRefused) {
  EXPECT_THROW(train_sentencepiece({}, {}, directory_.path()), BadInput);
  EXPECT_THROW(train_sentencepiece({"", "\n\t"}, {}, directory_.path()), BadInput);
  EXPECT_THROW(train_sentencepiece({"abc"}, {.vocab_size = 5000}, directory_.path()), BadInput);
  EXPECT_THROW(train_sentencepiece(training_texts(), {.vocab_size = 10}, directory_.path()), BadInput);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "tokenizer.model"));
}

TEST_F(TokenizerTest, DirectoryWithoutTokenizerNamesTheFilesLookedFor) {
  EXPECT_THAT(error_of_loading(),
              ::testing::AllOf(HasSubstr("tokenizer.json"), HasSubstr("tokenizer.model")));
}

TEST_F(TokenizerTest, DamagedModelsAndConfigsAreRefused) {
  train_sentencepiece(training_texts(), {.vocab_size = 300}, directory_.path());
  const std::string model = read_text_file(directory_ / "tokenizer.model");
  for (const size_t size : {model.size() / 2, model.size() - 1, size_t{7}, size_t{0}}) {
    directory_.write("tokenizer.model", model.substr(0, size));
    EXPECT_THAT(error_of_loading(), HasSubstr("tokenizer.model")) << size;
  }
  directory_.write("tokenizer.model", model);
  directory_.write("tokenizer_config.json", R"({"bos_token": "<nope>"})");
  EXPECT_THAT(error_of_loading(), ::testing::AllOf(HasSubstr("bos_token"), HasSubstr("<nope>")));
  directory_.write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": "<pad>"}})");
  EXPECT_THAT(error_of_loading(), HasSubstr("added_tokens_decoder.x"));
}

TEST_F(TrainedTokenizerTest, AddedTokensBeyondTheModelAreKnownButNeverRead) {
  const std::string before = tokenizer_->fingerprint();
  directory_.write("added_tokens.json", R"({"<pad>": 361})");
  const auto tokenizer = load_tokenizer(directory_.path());
  EXPECT_EQ(tokenizer->vocab_size(), 362);
  EXPECT_EQ(tokenizer->special_id("<pad>"), 361);
  EXPECT_EQ(tokenizer->encode("<pad>"), tokenizer_->encode("<pad>"));
  const std::vector<int32_t> ids = {361, 2, 361};
  EXPECT_EQ(tokenizer->decode(ids), "<pad></s><pad>");
  EXPECT_EQ(tokenizer->decode(ids, true), "");
  EXPECT_EQ(tokenizer->token_text(361), "<pad>");
  EXPECT_NE(tokenizer->fingerprint(), before);
}

Json post_processor_that_begins_with(const std::string& token, int id) {
  return Json{{"type", "TemplateProcessing"},
              {"single", Json::array({Json{{"SpecialToken", Json{{"id", token}}}},
                                      Json{{"Sequence", Json{{"id", "A"}}}}})},
              {"special_tokens", Json{{token, Json{{"ids", Json::array({id})}}}}}};
}

TEST_F(TrainedTokenizerTest, BosIsAddedWhereTokenizerJsonPutsItFirst) {
  EXPECT_TRUE(tokenizer_->adds_bos());  // as add_bos_token says, which a tokenizer.json beats
  const auto adds_bos = [&](const Json& post_processor) {
    directory_.write("tokenizer.json", write_json(Json{{"post_processor", post_processor}}));
    return load_tokenizer(directory_.path())->adds_bos();
  };
  EXPECT_TRUE(adds_bos(post_processor_that_begins_with("<s>", 1)));
  EXPECT_FALSE(adds_bos(post_processor_that_begins_with("</s>", 2)));
  EXPECT_FALSE(adds_bos(Json{{"type", "ByteLevel"}}));
  EXPECT_FALSE(adds_bos(Json(nullptr)));
}

TEST_F(TrainedTokenizerTest, AddEosTokenPutsNoSecondEosIntoDocumentsAndNoneAfterPrompts) {
  directory_.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>",
      "add_bos_token": true, "add_eos_token": true})");
  const auto tokenizer = load_tokenizer(directory_.path());
  std::vector<int32_t> expected = tokenizer->encode("The sum");
  expected.insert(expected.begin(), 1);
  EXPECT_EQ(encode_raw_prompt("The sum", *tokenizer), expected);
  expected.push_back(2);
  EXPECT_EQ(encode_document("The sum", *tokenizer).tokens, expected);
}

}  // namespace
}  // namespace satune
