#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/tokenizer.h"
#include "data/tokenizers/byte_level.h"
#include "data/tokenizers/byte_pair_encoder.h"
#include "tests/realdata.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) {
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    }
    for (size_t k = 0; k < 4; ++k) out += i + k > bytes.size() ? '=' : kDigits[bits >> (18 - 6 * k) & 63];
  }
  return out;
}

/// All bytes, then " l", "ll", "he", "hell", "hello".
std::string rank_file() {
  std::string text;
  for (int byte = 0; byte < 256; ++byte)
    text += base64(std::string(1, static_cast<char>(byte))) + " " + std::to_string(byte) + "\n";
  int rank = 256;
  for (const char* token : {" l", "ll", "he", "hell", "hello"})
    text += base64(token) + " " + std::to_string(rank++) + "\n";
  return text;
}

constexpr const char* kRankFileConfig = R"({"added_tokens_decoder": {
  "261": {"content": "<|begin_of_text|>", "special": true}, "262": {"content": "<|eot_id|>", "special": true}},
  "bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>"}})";

/// The same vocabulary as a tokenizer.json; merges lead to "hell" but not to "hello".
Json tokenizer_json() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[to_byte_level(std::string(1, static_cast<char>(byte)))] = byte;
  int id = 256;
  for (const char* token : {" l", "ll", "he", "hell", "hello"}) vocab[to_byte_level(token)] = id++;
  return Json{
      {"added_tokens", Json::array({Json{{"id", 261}, {"content", "<|eot_id|>"}, {"special", true}}})},
      {"normalizer", nullptr},
      {"pre_tokenizer", Json{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", Json{{"type", "ByteLevel"}}},
      {"model", Json{{"type", "BPE"},
                     {"vocab", vocab},
                     {"merges", Json::array({"\xC4\xA0 l", "l l", "h e", "he ll"})}}}};
}

class BpeTokenizerTest : public ::testing::Test {
 protected:
  std::unique_ptr<Tokenizer> load() const { return load_tokenizer(directory_.path()); }
  std::unique_ptr<Tokenizer> load(const Json& json) const {
    directory_.write("tokenizer.json", write_json(json));
    return load();
  }
  std::string error() const {
    try {
      load();
    } catch (const BadInput& bad) {
      EXPECT_THAT(bad.what(), Not(HasSubstr("\n")));
      return bad.what();
    }
    return "loaded";
  }
  std::string error_of_json(const Json& json) const {
    directory_.write("tokenizer.json", write_json(json));
    return error();
  }
  std::string error_of_ranks(const std::string& text) const {
    directory_.write("tokenizer_config.json", kRankFileConfig);
    directory_.write("tokenizer.model", text);
    return error();
  }

  TemporaryDirectory directory_;
};

TEST_F(BpeTokenizerTest, RankFileMergesByRank) {
  ASSERT_EQ(error_of_ranks(rank_file()), "loaded");
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->kind(), "bpe");
  EXPECT_EQ(tokenizer->vocab_size(), 263);
  EXPECT_EQ(tokenizer->bos_id(), 261);
  EXPECT_EQ(tokenizer->eos_id(), 262);
  EXPECT_THAT(tokenizer->encode("hello"), ElementsAre(260));
  EXPECT_THAT(tokenizer->encode("hell"), ElementsAre(259));
  EXPECT_THAT(tokenizer->encode("shells ll"), ElementsAre('s', 259, 's', 256, 'l'));
}

TEST_F(BpeTokenizerTest, JsonMergesByItsListUnlessItIgnoresMerges) {
  Json json = tokenizer_json();
  EXPECT_THAT(load(json)->encode("hello"), ElementsAre(259, 'o'));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(load(json)->encode("hello"), ElementsAre(260));
  json["model"]["merges"] = Json::array({Json::array({"l", "l"}), Json::array({"h", "e"})});
  EXPECT_THAT(load(json)->encode("shell"), ElementsAre('s', 258, 257));
}

TEST_F(BpeTokenizerTest, TextNeverYieldsASpecialToken) {
  const auto tokenizer = load(tokenizer_json());
  EXPECT_EQ(tokenizer->special_id("<|eot_id|>"), 261);
  EXPECT_THAT(tokenizer->encode("<|eot_id|>"),
              AllOf(::testing::SizeIs(10), ::testing::Each(::testing::Lt(256))));
  const std::vector<int32_t> ids = {'a', 261, 'b', 999, -1};
  EXPECT_EQ(tokenizer->decode(ids), "a<|eot_id|>b");
  EXPECT_EQ(tokenizer->decode(ids, true), "ab");
}

TEST_F(BpeTokenizerTest, AddedTokensThatAreNotSpecialAreFoundInText) {
  Json json = tokenizer_json();
  json["added_tokens"].push_back(Json{{"id", 262}, {"content", "ab"}, {"special", false}});
  json["added_tokens"].push_back(Json{{"id", 263}, {"content", "abc"}, {"special", false}});
  EXPECT_THAT(load(json)->encode("xabcab<|eot_id|>"), AllOf(::testing::SizeIs(13), ::testing::Contains(263)));
  json["added_tokens"][1]["lstrip"] = true;
  EXPECT_THAT(error_of_json(json), AllOf(HasSubstr("added_tokens[1].lstrip"), HasSubstr("found true")));
}

TEST_F(BpeTokenizerTest, BytesThatAreNotUtf8AreReplacedInAndOut) {
  const auto tokenizer = load(tokenizer_json());
  EXPECT_EQ(tokenizer->encode("a\xF0\x9F\xA6z\xFF"), tokenizer->encode("a\xEF\xBF\xBDz\xEF\xBF\xBD"));
  const std::vector<int32_t> ids = {0xF0, 0x9F, 0xA6, 'z', 0xFF};
  EXPECT_EQ(tokenizer->decode(ids), "\xEF\xBF\xBDz\xEF\xBF\xBD");
  EXPECT_EQ(tokenizer->token_text(0xFF), "\xFF");
}

TEST_F(BpeTokenizerTest, VeryLongWordsTakeTheSameMergesAsShortOnes) {
  const auto tokenizer = load(tokenizer_json());
  std::string word;
  std::vector<int32_t> expected;
  for (int i = 0; i < 20000; ++i) {
    word += "shell";
    expected.insert(expected.end(), {'s', 259});
  }
  EXPECT_EQ(tokenizer->encode(word), expected);
}

TEST_F(BpeTokenizerTest, OneTokenizerServesManyThreads) {
  const auto tokenizer = load(tokenizer_json());
  const std::string text = "hello shells, hell \xE4\xB8\xAD 12";
  const std::vector<int32_t> expected = tokenizer->encode(text);
  std::vector<int> same(4, 0);
  std::vector<std::thread> threads;
  for (int& count : same) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) count += tokenizer->encode(text) == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(same, ElementsAre(500, 500, 500, 500));
}

TEST_F(BpeTokenizerTest, BosAndEosComeFromTheConfigThenTheMapThenTheModel) {
  Json json = tokenizer_json();
  json["added_tokens"].push_back(Json{{"id", 262}, {"content", "<|end_of_text|>"}, {"special", true}});
  EXPECT_EQ(load(json)->eos_id(), 262);
  EXPECT_EQ(load(json)->bos_id(), std::nullopt);
  directory_.write("special_tokens_map.json", R"({"eos_token": {"content": "<|eot_id|>"}})");
  EXPECT_EQ(load()->eos_id(), 261);
  directory_.write("tokenizer_config.json", R"({"eos_token": "<|end_of_text|>", "bos_token": null})");
  EXPECT_EQ(load()->eos_id(), 262);
  directory_.write("tokenizer_config.json", R"({"eos_token": "<nope>"})");
  EXPECT_THAT(error(), AllOf(HasSubstr("tokenizer_config.json: eos_token"), HasSubstr("\"<nope>\"")));
  directory_.write("tokenizer_config.json", R"({"eos_token": 5})");
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json: eos_token"));
}

TEST_F(BpeTokenizerTest, FingerprintFollowsContentAndAddedTokens) {
  Json json = tokenizer_json();
  const std::string first = load(json)->fingerprint();
  EXPECT_EQ(load(json)->fingerprint(), first);
  directory_.write("added_tokens.json", R"({"<pad>": 262})");
  EXPECT_EQ(load()->special_id("<pad>"), 262);
  EXPECT_NE(load()->fingerprint(), first);
  std::filesystem::remove(directory_ / "added_tokens.json");
  json["model"]["merges"].erase(3);
  EXPECT_NE(load(json)->fingerprint(), first);
}

TEST_F(BpeTokenizerTest, BadRankFilesNameTheLine) {
  const std::string good = rank_file();
  EXPECT_THAT(error_of_ranks(good + "!!!! 261\n"), AllOf(HasSubstr("line 262"), HasSubstr("\"!!!!\"")));
  EXPECT_THAT(error_of_ranks(good + "aGU\n"), AllOf(HasSubstr("line 262"), HasSubstr("its rank")));
  EXPECT_THAT(error_of_ranks(good + "eHg= x\n"), AllOf(HasSubstr("line 262"), HasSubstr("rank \"x\"")));
  EXPECT_THAT(error_of_ranks(good + "eHg= 7\n"), AllOf(HasSubstr("line 262"), HasSubstr("rank 7 again")));
  EXPECT_THAT(error_of_ranks(good + "aGU= 261\n"),
              AllOf(HasSubstr("line 262"), HasSubstr("token of rank 258")));
  EXPECT_THAT(error_of_ranks(good + "eHg= 263\n"), HasSubstr("no rank 261"));
  EXPECT_THAT(error_of_ranks("IQ== 0\n"), HasSubstr("no token for the byte 0x00"));
  EXPECT_THAT(error_of_ranks(""), HasSubstr("tokenizer.model"));
}

TEST_F(BpeTokenizerTest, TruncatedRankFilesAreRefusedWhereverTheyEnd) {
  const std::string good = rank_file();
  for (size_t size = good.size() - 40; size + 1 < good.size(); ++size) {
    EXPECT_THAT(error_of_ranks(good.substr(0, size)), HasSubstr("tokenizer.model")) << size;
  }
  directory_.write("tokenizer.model", good);
  std::filesystem::remove(directory_ / "tokenizer_config.json");
  EXPECT_THAT(error(), AllOf(HasSubstr("261 ranks, expected Llama-3's 128000")));
}

TEST_F(BpeTokenizerTest, OtherKindsOfTokenizerJsonAreRefusedByName) {
  const auto with = [](const char* pointer, const Json& value) {
    Json json = tokenizer_json();
    json[Json::json_pointer(pointer)] = value;
    return json;
  };
  const Json unigram = {{"type", "Unigram"}, {"vocab", Json::array({Json::array({"a", -1.5})})}};
  EXPECT_THAT(error_of_json(with("/model/type", "WordPiece")),
              AllOf(HasSubstr("model.type"), HasSubstr("WordPiece")));
  EXPECT_THAT(error_of_json(with("/model", unigram)), AllOf(HasSubstr("model.type"), HasSubstr("Unigram")));
  EXPECT_THAT(error_of_json(with("/model/byte_fallback", true)),
              AllOf(HasSubstr("byte_fallback"), HasSubstr("tokenizer.model")));
  EXPECT_THAT(error_of_json(with("/model/dropout", 0.1)), HasSubstr("model.dropout"));
  EXPECT_THAT(error_of_json(with("/model/end_of_word_suffix", "</w>")),
              HasSubstr("model.end_of_word_suffix"));
  EXPECT_THAT(error_of_json(with("/normalizer", Json{{"type", "NFC"}})),
              AllOf(HasSubstr("normalizer"), HasSubstr("NFC")));
  EXPECT_THAT(error_of_json(with("/pre_tokenizer", Json{{"type", "Metaspace"}})),
              AllOf(HasSubstr("pre_tokenizer"), HasSubstr("Metaspace")));
  EXPECT_THAT(error_of_json(with("/pre_tokenizer", nullptr)), HasSubstr("pre_tokenizer"));
  EXPECT_THAT(error_of_json(with("/decoder", Json{{"type", "WordPiece"}})),
              AllOf(HasSubstr("decoder"), HasSubstr("WordPiece")));
  EXPECT_EQ(error_of_json(tokenizer_json()), "loaded");
}

TEST_F(BpeTokenizerTest, BadSplitsAreRefused) {
  Json json = tokenizer_json();
  Json split = {
      {"type", "Split"}, {"pattern", Json{{"Regex", "(a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  json["pre_tokenizer"] =
      Json{{"type", "Sequence"}, {"pretokenizers", Json::array({split, json["pre_tokenizer"]})}};
  EXPECT_THAT(error_of_json(json), AllOf(HasSubstr("pretokenizers[0].pattern"), HasSubstr("(a")));
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = Json{{"Regex", "a"}};
  EXPECT_EQ(error_of_json(json), "loaded");
  json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext";
  EXPECT_THAT(error_of_json(json), AllOf(HasSubstr("behavior"), HasSubstr("MergedWithNext")));
}

TEST_F(BpeTokenizerTest, DamagedVocabulariesAndMergesAreRefused) {
  Json json = tokenizer_json();
  json["model"]["merges"].push_back("x yz");
  EXPECT_THAT(error_of_json(json), AllOf(HasSubstr("model.merges[4]"), HasSubstr("\"yz\"")));
  json["model"]["merges"][4] = "xyz";
  EXPECT_THAT(error_of_json(json), AllOf(HasSubstr("model.merges[4]"), HasSubstr("\"xyz\"")));
  json["model"]["merges"][4] = 7;
  EXPECT_THAT(error_of_json(json), HasSubstr("model.merges[4]"));
  json = tokenizer_json();
  json["model"]["vocab"]["a"] = 5;
  EXPECT_THAT(error_of_json(json), HasSubstr("id 5"));
  json["model"]["vocab"]["a"] = "x";
  EXPECT_THAT(error_of_json(json), HasSubstr("model.vocab.a"));
  json["model"]["vocab"].erase("a");
  EXPECT_THAT(error_of_json(json), HasSubstr("no token for the byte 0x61"));
  json = tokenizer_json();
  json["added_tokens"][0]["id"] = 5;
  EXPECT_THAT(error_of_json(json), AllOf(HasSubstr("added_tokens"), HasSubstr("id 5")));
  const std::string text = write_json(tokenizer_json());
  for (const size_t size : {size_t{0}, size_t{1}, text.size() / 2, text.size() - 3}) {
    directory_.write("tokenizer.json", text.substr(0, size));
    EXPECT_THAT(error(), HasSubstr("tokenizer.json")) << size;
  }
}

TEST_F(BpeTokenizerTest, Llama2JsonWithoutItsModelIsRefusedAndWithItNotRead) {
  SATUNE_REALDATA_OR_SKIP(llama2, "tok_llama2");
  std::filesystem::copy_file(llama2 / "tokenizer.json", directory_ / "tokenizer.json");
  EXPECT_THAT(error(), AllOf(HasSubstr("tokenizer.json"), HasSubstr("tokenizer.model")));
  std::filesystem::copy_file(llama2 / "tokenizer.model", directory_ / "tokenizer.model");
  EXPECT_EQ(load()->kind(), "sentencepiece");
}

}  // namespace
}  // namespace satune
