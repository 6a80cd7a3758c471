#include "model/decode.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "data/files/error.h"
#include "model/kv_cache.h"
#include "tests/model_configs.h"

namespace satune {
namespace {

ModelConfig decode_config(const std::string& sharing, AnchorRule rule, bool tied = false) {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 61, .hidden = 32, .ffn = 48, .layers = 7, .heads = 4, .kv_heads = 2, .head_dim = 8});
  config.tie_word_embeddings = tied;
  config.sharing = sharing.empty() ? SharingPlan(7) : SharingPlan::parse(sharing, rule, 7);
  return config;
}

Llama decode_model(const ModelConfig& config, at::ScalarType type = at::kFloat) {
  Llama model(config, {}, type, at::kCPU);
  // Large enough that attention is far from uniform and a wrong key shows.
  initialise_weights(model.weights(), 0.3, 7);
  return model;
}

std::vector<int32_t> decode_tokens(int64_t count) {
  std::vector<int32_t> tokens(count);
  for (int64_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>((i * i * 7 + 3 * i + 5) % 61);
  return tokens;
}

at::Tensor whole_logits(Llama& model, const std::vector<int32_t>& tokens) {
  DeviceBatch batch;
  const auto N = static_cast<int64_t>(tokens.size());
  batch.tokens_N = at::tensor(at::IntArrayRef(std::vector<int64_t>(tokens.begin(), tokens.end())));
  batch.positions_N = at::arange(N, at::kLong);
  batch.document_starts = {0, N};
  return model.logits(batch).to(at::kFloat);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

struct DecodeCase {
  std::string name, sharing;
  AnchorRule rule;
  bool tied;
};

class DecoderCases : public ::testing::TestWithParam<DecodeCase> {};

TEST_P(DecoderCases, StepsGiveTheLogitsOfTheWholeSequence) {
  Llama model = decode_model(decode_config(GetParam().sharing, GetParam().rule, GetParam().tied));
  const std::vector<int32_t> tokens = decode_tokens(23);
  const at::Tensor expected_NV = whole_logits(model, tokens);
  Decoder decoder(model, 23);
  const std::span<const int32_t> all(tokens);
  at::Tensor logits_V = decoder.append(all.first(9));
  EXPECT_LT(largest_difference(logits_V, expected_NV[8]), 1e-4);
  for (size_t i = 9; i < tokens.size(); ++i) {
    logits_V = decoder.append(all.subspan(i, 1));
    EXPECT_LT(largest_difference(logits_V, expected_NV[static_cast<int64_t>(i)]), 1e-4) << "token " << i;
    EXPECT_EQ(logits_V.argmax().item<int64_t>(),
              expected_NV[static_cast<int64_t>(i)].argmax().item<int64_t>());
  }
  EXPECT_EQ(decoder.length(), 23);
}

TEST_P(DecoderCases, HowTheTokensArriveDoesNotMatter) {
  Llama model = decode_model(decode_config(GetParam().sharing, GetParam().rule, GetParam().tied));
  const std::vector<int32_t> tokens = decode_tokens(17);
  const std::span<const int32_t> all(tokens);
  Decoder decoder(model, 17);
  const at::Tensor at_once = decoder.append(all);
  decoder.clear();
  at::Tensor one_by_one;
  for (size_t i = 0; i < tokens.size(); ++i) one_by_one = decoder.append(all.subspan(i, 1));
  decoder.clear();
  decoder.append(all.first(5));
  const at::Tensor in_two = decoder.append(all.subspan(5));
  EXPECT_LT(largest_difference(at_once, one_by_one), 1e-4);
  EXPECT_LT(largest_difference(at_once, in_two), 1e-4);
}

TEST_P(DecoderCases, SequencesThatStepTogetherAreEachTheirOwn) {
  Llama model = decode_model(decode_config(GetParam().sharing, GetParam().rule, GetParam().tied));
  const std::vector<int32_t> tokens = decode_tokens(21);
  const std::span<const int32_t> all(tokens);
  const std::vector<std::span<const int32_t>> texts = {all.first(14), all.subspan(3, 12), all.subspan(9, 10)};
  Decoder decoder(model, 16, 3);
  decoder.append(all.first(16), 1);  // of another text before
  decoder.clear(1);
  for (int64_t s = 0; s < 3; ++s) decoder.append(texts[s].first(s + 5), s);
  const std::vector<std::vector<int64_t>> steps = {{0, 1, 2}, {2, 0}, {1, 2}, {0}, {1, 0}};
  for (const std::vector<int64_t>& sequences : steps) {
    std::vector<int32_t> next;
    for (const int64_t s : sequences) next.push_back(texts[s][decoder.length(s)]);
    const at::Tensor logits_MV = decoder.step(next, sequences);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int64_t s = sequences[i], length = decoder.length(s);
      const std::vector<int32_t> so_far(texts[s].begin(), texts[s].begin() + length);
      EXPECT_LT(
          largest_difference(logits_MV[static_cast<int64_t>(i)], whole_logits(model, so_far)[length - 1]),
          1e-4)
          << "sequence " << s << " of " << length;
    }
  }
  EXPECT_EQ(decoder.length(0), 9);
  EXPECT_EQ(decoder.length(1), 9);
  EXPECT_EQ(decoder.length(2), 10);
}

INSTANTIATE_TEST_SUITE_P(Plans, DecoderCases,
                         ::testing::Values(DecodeCase{"dense", "", AnchorRule::kBefore, false},
                                           DecodeCase{"dense_tied", "", AnchorRule::kBefore, true},
                                           DecodeCase{"before", "3-5", AnchorRule::kBefore, false},
                                           DecodeCase{"first", "3-6", AnchorRule::kFirst, false},
                                           DecodeCase{"runs_before", "1,3-4,6", AnchorRule::kBefore, true},
                                           DecodeCase{"runs_first", "0-2,4-6", AnchorRule::kFirst, false}),
                         [](const auto& info) { return info.param.name; });

TEST(Decoder, WorksInBf16) {
  const ModelConfig config = decode_config("3-5", AnchorRule::kBefore);
  Llama model = decode_model(config, at::kBFloat16);
  const std::vector<int32_t> tokens = decode_tokens(20);
  const at::Tensor expected_NV = whole_logits(model, tokens);
  Decoder decoder(model, 20);
  decoder.append(std::span(tokens).first(12));
  at::Tensor logits_V;
  for (size_t i = 12; i < tokens.size(); ++i) logits_V = decoder.append(std::span(tokens).subspan(i, 1));
  // Two paths of bf16 arithmetic part by a few units in the last place (2^-8) of the largest logit.
  EXPECT_LT(largest_difference(logits_V, expected_NV[19]), 0.03 * expected_NV[19].abs().max().item<double>());
}

/// Sizes that are no multiple of what the kernels take at a time.
ModelConfig odd_config() {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 61, .hidden = 44, .ffn = 53, .layers = 4, .heads = 6, .kv_heads = 2, .head_dim = 20});
  config.sharing = SharingPlan::parse("2-3", AnchorRule::kBefore, 4);
  return config;
}

TEST(Decoder, SizesNeedNotBeRound) {
  Llama model = decode_model(odd_config());
  const std::vector<int32_t> tokens = decode_tokens(15);
  const at::Tensor expected_NV = whole_logits(model, tokens);
  Decoder decoder(model, 15);
  decoder.append(std::span(tokens).first(3));
  EXPECT_LT(largest_difference(decoder.append(std::span(tokens).subspan(3)), expected_NV[14]), 1e-4);
}

TEST(Decoder, OtherTypesStepByTensorOperations) {
  const ModelConfig config = decode_config("1,3-4,6", AnchorRule::kBefore);
  Llama model = decode_model(config, at::kDouble);
  const std::vector<int32_t> tokens = decode_tokens(12);
  const std::span<const int32_t> all(tokens);
  Decoder decoder(model, 12, 2);
  decoder.append(all.first(7), 1);
  decoder.append(all.first(5), 0);
  const at::Tensor logits_MV =
      decoder.step(std::vector<int32_t>{tokens[5], tokens[7]}, std::vector<int64_t>{0, 1});
  const at::Tensor expected_NV = whole_logits(model, tokens);
  EXPECT_LT(largest_difference(logits_MV[0], expected_NV[5]), 1e-5);
  EXPECT_LT(largest_difference(logits_MV[1], expected_NV[7]), 1e-5);
  EXPECT_LT(largest_difference(decoder.append(all.subspan(8), 1), expected_NV[11]), 1e-5);
  // Two rows and then four, over 7 layers of which 4 reuse.
  EXPECT_EQ(decoder.attention_counts().computed, 3 * (2 + 4));
  EXPECT_EQ(decoder.attention_counts().reused, 4 * (2 + 4));
}

/// Logits after a step of sequence 0 beside `others` sequences of other texts.
at::Tensor logits_beside(const Llama& model, int64_t others) {
  const std::vector<int32_t> tokens = decode_tokens(40);
  const std::span<const int32_t> all(tokens);
  Decoder decoder(model, 40, others + 1);
  std::vector<int32_t> next;
  std::vector<int64_t> sequences;
  for (int64_t s = others; s >= 0; --s) {
    decoder.append(all.first(9 + 3 * s), s);
    next.push_back(tokens[20 - s]);
    sequences.push_back(s);
  }
  decoder.step(next, sequences);
  return decoder.step(next, sequences)[others];
}

TEST(Decoder, ASequenceHasTheSameBitsAloneAndBesideOthers) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const ModelConfig& config : {decode_config("3-5", AnchorRule::kBefore), odd_config()}) {
      const Llama model = decode_model(config, type);
      const at::Tensor alone = logits_beside(model, 0);
      for (const int64_t others : {1, 2, 3, 4, 8})
        EXPECT_TRUE(at::equal(logits_beside(model, others), alone)) << type << " beside " << others;
    }
  }
}

TEST(Decoder, AConversationGoesOnFromWhatIsKept) {
  const Llama model = decode_model(decode_config("3-5", AnchorRule::kFirst));
  const std::vector<int32_t> tokens = decode_tokens(40);
  const std::span<const int32_t> all(tokens);
  Decoder decoder(model, 40);
  decoder.append(all.first(6));
  for (size_t i = 6; i < 30; ++i) decoder.append(all.subspan(i, 1));
  const at::Tensor one_by_one = decoder.append(all.subspan(30, 1));
  decoder.truncate(8);
  EXPECT_EQ(decoder.length(), 8);
  EXPECT_TRUE(at::equal(decoder.append(all.subspan(8, 23)), one_by_one));
  decoder.truncate(50);
  EXPECT_EQ(decoder.length(), 31);
}

TEST(Decoder, SharedLayersCacheValuesOnly) {
  // 2 heads of 8 elements: 16 a tensor, keys and values of 7 layers.
  Llama dense = decode_model(decode_config("", AnchorRule::kBefore));
  EXPECT_EQ(Decoder(dense, 4).bytes_per_token(), 7 * 2 * 16 * 4);
  EXPECT_EQ(Decoder(dense, 4, 3).cache_bytes(), 3 * 4 * 7 * 2 * 16 * 4);
  EXPECT_EQ(Decoder(dense, 4, 3).dense_cache_bytes(), Decoder(dense, 4, 3).cache_bytes());
  Llama shared = decode_model(decode_config("3-5", AnchorRule::kBefore));
  EXPECT_EQ(Decoder(shared, 4).bytes_per_token(), (7 * 2 - 3) * 16 * 4);
  EXPECT_EQ(Decoder(shared, 5, 2).cache_bytes(), 2 * 5 * (7 * 2 - 3) * 16 * 4);
  EXPECT_EQ(Decoder(shared, 5, 2).dense_cache_bytes(), 2 * 5 * 7 * 2 * 16 * 4);
  Llama first = decode_model(decode_config("3-5", AnchorRule::kFirst), at::kBFloat16);
  EXPECT_EQ(Decoder(first, 4).bytes_per_token(), (7 * 2 - 2) * 16 * 2);
}

TEST(KvCache, HoldsKeysOfTheLayersThatComputeAlone) {
  const KvCache cache(decode_config("3-5", AnchorRule::kFirst), 2, 10, at::kBFloat16, at::kCPU);
  for (int layer = 0; layer < 7; ++layer) {
    EXPECT_EQ(cache.values[layer].nbytes(), 2u * 10 * 16 * 2) << layer;
    EXPECT_EQ(cache.keys[layer].defined(), layer != 4 && layer != 5) << layer;
  }
  EXPECT_EQ(cache.bytes(), 2 * 10 * (7 * 2 - 2) * 16 * 2);
}

TEST(Decoder, ASpansWeightsAreComputedOnceAStep) {
  const Llama model = decode_model(decode_config("3-5", AnchorRule::kBefore));
  Decoder decoder(model, 12, 2);
  const std::vector<int32_t> tokens = decode_tokens(12);
  decoder.append(std::span(tokens).first(4), 0);
  decoder.append(std::span(tokens).first(5), 1);
  EXPECT_EQ(decoder.attention_counts().computed, 0);
  decoder.step(std::span(tokens).first(2), std::vector<int64_t>{0, 1});
  decoder.step(std::span(tokens).first(1), std::vector<int64_t>{1});
  EXPECT_EQ(decoder.attention_counts().computed, 3 * 4);
  EXPECT_EQ(decoder.attention_counts().reused, 3 * 3);
}

TEST(Decoder, RefusesAStepOfSequencesThatItLacks) {
  const Llama model = decode_model(decode_config("3-5", AnchorRule::kBefore));
  const std::vector<int32_t> tokens = decode_tokens(4);
  Decoder two(model, 5, 2);
  two.append(std::span(tokens).first(2), 0);
  two.append(std::span(tokens).first(3), 1);
  const auto step = [&](const std::vector<int32_t>& next, const std::vector<int64_t>& sequences) {
    return two.step(next, sequences);
  };
  EXPECT_THROW(step({1}, {0, 1}), c10::Error);
  EXPECT_THROW(step({1, 2}, {0}), c10::Error);
  EXPECT_THROW(step({1, 2}, {0, 2}), c10::Error);
  EXPECT_THROW(step({1}, {-1}), c10::Error);
  EXPECT_THROW(step({1, 2}, {1, 1}), c10::Error);
  EXPECT_THROW(step({1, 61}, {0, 1}), BadInput);
  EXPECT_THROW(step({1, -1}, {0, 1}), BadInput);
  EXPECT_THROW(two.append(std::span(tokens).first(1), 2), c10::Error);
  EXPECT_THROW(two.truncate(0, 2), c10::Error);
  EXPECT_THROW(two.truncate(-1), c10::Error);
  EXPECT_EQ(two.length(0), 2);
  EXPECT_EQ(two.length(1), 3);
  EXPECT_EQ(step({tokens[2], tokens[3]}, {0, 1}).size(0), 2);
}

TEST(Decoder, RefusesWhatDoesNotFitAndKeepsItsState) {
  Llama model = decode_model(decode_config("3-5", AnchorRule::kBefore));
  const std::vector<int32_t> tokens = decode_tokens(6);
  Decoder decoder(model, 5);
  EXPECT_THROW(decoder.append(tokens), BadInput);
  EXPECT_THROW(decoder.append({}), BadInput);
  const std::vector<int32_t> outside = {1, 61};
  EXPECT_THROW(decoder.append(outside), BadInput);
  EXPECT_EQ(decoder.length(), 0);
  Decoder two(model, 5, 2);
  two.append(std::span(tokens).first(5), 0);
  two.append(std::span(tokens).first(2), 1);
  EXPECT_THROW(two.step(std::span(tokens).first(2), std::vector<int64_t>{1, 0}), BadInput);
  EXPECT_EQ(two.length(1), 2);
  EXPECT_LT(largest_difference(decoder.append(std::span(tokens).first(5)), whole_logits(model, tokens)[4]),
            1e-4);
}

}  // namespace
}  // namespace satune
