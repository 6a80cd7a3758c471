#include "evaluation/generation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "data/files/error.h"
#include "data/prompt_template.h"
#include "evaluation/model_loader.h"
#include "tests/evaluation/fixtures.h"
#include "tests/realdata.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

const std::vector<int32_t> kPrompt = {1, 80, 90, 100};

std::vector<int32_t> generated(const Llama& model, const GenerationOptions& options) {
  Decoder decoder(model, static_cast<int64_t>(kPrompt.size()) + options.max_new_tokens);
  return generate(decoder, kPrompt, options).tokens;
}

TEST(Generation, GreedyIsTheArgmaxOfTheWholeSequence) {
  Llama model = byte_model("2-3");
  const std::vector<int32_t> tokens = generated(model, {.max_new_tokens = 12});
  ASSERT_EQ(tokens.size(), 12u);
  std::vector<int64_t> sequence(kPrompt.begin(), kPrompt.end());
  for (const int32_t token : tokens) {
    const auto N = static_cast<int64_t>(sequence.size());
    DeviceBatch batch;
    batch.tokens_N = at::tensor(at::IntArrayRef(sequence));
    batch.positions_N = at::arange(N, at::kLong);
    batch.document_starts = {0, N};
    EXPECT_EQ(token, model.logits(batch)[N - 1].argmax().item<int64_t>());
    sequence.push_back(token);
  }
}

TEST(Generation, StopsAtAnyStopIdAndKeepsItLast) {
  Llama model = byte_model();
  const std::vector<int32_t> free = generated(model, {.max_new_tokens = 10});
  const int32_t stop = free[4];
  size_t first = 0;
  while (free[first] != stop) ++first;
  Decoder decoder(model, 14);
  std::vector<int32_t> seen;
  const Generation result = generate(
      decoder, kPrompt, {.max_new_tokens = 10, .sampling = {}, .stop_ids = {9999, stop}}, [&](int32_t token) {
        seen.push_back(token);
        return true;
      });
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.tokens,
            std::vector<int32_t>(free.begin(), free.begin() + static_cast<ptrdiff_t>(first) + 1));
  EXPECT_EQ(result.text_tokens().size(), first);
  EXPECT_EQ(seen, std::vector<int32_t>(free.begin(), free.begin() + static_cast<ptrdiff_t>(first)));
}

TEST(Generation, TogetherIsOneByOne) {
  Llama model = byte_model("2-3");
  std::vector<std::vector<int32_t>> texts;
  for (int32_t i = 0; i < 7; ++i) {
    texts.push_back(kPrompt);
    for (int32_t k = 0; k < i % 4; ++k) texts.back().push_back(50 + 11 * i + k);
  }
  const std::vector<std::span<const int32_t>> prompts(texts.begin(), texts.end());
  const int32_t stop = generated(model, {.max_new_tokens = 9}).back();
  const GenerationOptions options{.max_new_tokens = 9, .sampling = {}, .stop_ids = {stop}};
  std::vector<Generation> expected;
  for (const auto& prompt : prompts) {
    Decoder decoder(model, 20);
    expected.push_back(generate(decoder, prompt, options,
                                [&](int32_t token) { return token % 5 != 0 || prompt.size() < 6; }));
  }
  for (const int64_t sequences : {1, 3, 16}) {
    Decoder decoder(model, 20, sequences);
    std::vector<Generation> found(prompts.size());
    size_t ended = 0;
    generate_together(
        decoder, prompts, options,
        [&](size_t i, int32_t token) { return token % 5 != 0 || prompts[i].size() < 6; },
        [&](size_t i, Generation text) {
          found[i] = std::move(text);
          ++ended;
        });
    EXPECT_EQ(ended, prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(found[i].tokens, expected[i].tokens) << i << " of " << sequences;
      EXPECT_EQ(found[i].stopped, expected[i].stopped);
    }
  }
  Decoder small(model, 12, 2);
  EXPECT_THROW(generate_together(small, prompts, options, {}, {}), BadInput);
}

/// pain: another answer for another batch size.
TEST(Generation, DrawsTogetherAreThoseAlone) {
  const Llama model = byte_model("2-3");
  const std::vector<int32_t> texts[] = {kPrompt, {1, 60}, kPrompt, {1, 70, 71, 72, 73, 74}, {1, 99, 98}};
  const std::vector<std::span<const int32_t>> prompts(std::begin(texts), std::end(texts));
  GenerationOptions options{.max_new_tokens = 15,
                            .sampling = {.temperature = 1.2, .top_k = 40, .top_p = 0.95}};
  std::vector<std::vector<int32_t>> alone;
  for (size_t i = 0; i < prompts.size(); ++i) {
    options.first_index = i;
    Decoder decoder(model, 21);
    alone.push_back(generate(decoder, prompts[i], options).tokens);
  }
  EXPECT_NE(alone[0], alone[2]);  // the same prompt at another place
  options.first_index = 0;
  for (const int64_t sequences : {1, 2, 5}) {
    Decoder decoder(model, 21, sequences);
    generate_together(
        decoder, prompts, options, [](size_t, int32_t) { return true; },
        [&](size_t i, const Generation& text) { EXPECT_EQ(text.tokens, alone[i]) << i; });
  }
}

TEST(Generation, PromptAndAnswerEndAtMaxLength) {
  const Llama model = byte_model();
  Decoder decoder(model, 9);
  const Generation result = generate(decoder, kPrompt, {.max_new_tokens = 50, .max_length = 9});
  EXPECT_EQ(result.tokens.size(), 5u);
  EXPECT_FALSE(result.stopped || result.cut);
  EXPECT_GT(result.first_token_seconds, 0);
  EXPECT_GE(result.seconds, result.first_token_seconds);
  EXPECT_THROW(generate(decoder, kPrompt, {.max_length = 4}), BadInput);
}

TEST(Generation, GoesOnFromWhatTheDecoderHolds) {
  const Llama model = byte_model("2-3");
  const std::vector<int32_t> prompt = {1, 80, 90, 100, 110, 120, 130};
  Decoder decoder(model, 20);
  const std::vector<int32_t> expected = generate(decoder, prompt, {.max_new_tokens = 8}).tokens;
  decoder.truncate(4);
  EXPECT_EQ(generate(decoder, prompt, {.max_new_tokens = 8}).tokens, expected);
}

TEST(Generation, TheListenerCanEndIt) {
  Llama model = byte_model();
  Decoder decoder(model, 14);
  int64_t calls = 0;
  const Generation result =
      generate(decoder, kPrompt, {.max_new_tokens = 10}, [&](int32_t) { return ++calls < 3; });
  EXPECT_EQ(result.tokens.size(), 3u);
  EXPECT_TRUE(result.cut);
  EXPECT_FALSE(result.stopped);
}

TEST(Generation, SampledTextDependsOnTheSeedAlone) {
  Llama model = byte_model();
  GenerationOptions options{
      .max_new_tokens = 30, .sampling = {.temperature = 1.5, .seed = 5}, .stop_ids = {}};
  const std::vector<int32_t> first = generated(model, options);
  EXPECT_EQ(generated(model, options), first);
  options.sampling.seed = 6;
  EXPECT_NE(generated(model, options), first);
  options.sampling.top_k = 1;
  EXPECT_EQ(generated(model, options), generated(model, {.max_new_tokens = 30}));
}

TEST(Generation, RefusesWhatTheCacheCannotHold) {
  Llama model = byte_model();
  Decoder decoder(model, 10);
  EXPECT_THROW(generate(decoder, kPrompt, {.max_new_tokens = 7}), BadInput);
}

TEST(Generation, StopIdsComeFromAllPlacesThatNameOne) {
  const TemporaryDirectory directory;
  const ByteTokenizer tokenizer;
  ModelConfig config;
  config.eos_token_ids = {7, 8};
  EXPECT_EQ(stop_token_ids(directory.path(), config, tokenizer, std::nullopt),
            (std::vector<int64_t>{2, 7, 8}));
  directory.write("generation_config.json", R"({"eos_token_id": [8, 9]})");
  EXPECT_EQ(stop_token_ids(directory.path(), config, tokenizer, 5), (std::vector<int64_t>{2, 5, 7, 8, 9}));
  EXPECT_EQ(eos_token_ids(directory.path(), config), (std::vector<int64_t>{8, 9}));
  directory.write("generation_config.json", R"({"eos_token_id": 4})");
  EXPECT_EQ(stop_token_ids(directory.path(), config, tokenizer, std::nullopt),
            (std::vector<int64_t>{2, 4, 7, 8}));
  directory.write("generation_config.json", R"({"eos_token_id": ["</s>"]})");
  EXPECT_THROW(stop_token_ids(directory.path(), config, tokenizer, std::nullopt), BadInput);
}

TEST(Generation, ARealModelTellsItsKnownStory) {
  SATUNE_REALDATA_OR_SKIP(directory, "stories260K_hf");
  const ModelSource source = find_model({.name_or_path = directory.string()});
  const auto tokenizer = load_model_tokenizer(source.directory, source.config);
  const Llama model = load_model(source);
  const std::vector<int32_t> prompt = encode_raw_prompt("", *tokenizer);
  ASSERT_EQ(prompt, (std::vector<int32_t>{*tokenizer->bos_id()}));
  Decoder decoder(model, 128);
  const Generation result = generate(decoder, prompt, {.max_new_tokens = 100});
  const std::string text = tokenizer->decode(result.text_tokens(), true);
  // SOURCE.txt: greedy continuation from BOS by transformers in fp32.
  const std::string story =
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
      "she "
      "saw a big, red ball. She wanted to play with it, but it was too high.";
  EXPECT_EQ(text.substr(0, story.size()), story);
}

}  // namespace
}  // namespace satune
