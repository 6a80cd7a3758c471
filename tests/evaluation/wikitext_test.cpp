#include "evaluation/wikitext.h"

#include <gtest/gtest.h>

#include <cmath>

#include "data/files/error.h"
#include "data/prompt_template.h"
#include "evaluation/log_likelihood.h"
#include "tests/evaluation/fixtures.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

// What lm-eval's wikitext_detokenizer makes of these.
TEST(Wikitext, TextsAreThoseOfLmEval) {
  EXPECT_EQ(
      detokenize_wikitext(
          " = Marks = \n \n It 's 5 @.@ 5 \u00b0 C ( or so ) at 3 @,@ 000 m ; he said \" so it is \" : yes ! "
          "The "
          "boys ' 7 [ sic ] N dogs ' x ' / ' 3/' 4/ ran , ran ? { No } \n = = Sub = = \n = = = Deep = = = \n"
          " = = = = Deeper = = = = \n ( open ( twice ) and ) ( never closed . A well @-@ known N \u00b0 end "
          ". \n"),
      " = Marks =\n\nIt's 5.5\u00b0C (or so) at 3,000 m; he said \"so it is\": yes! The boys' 7 [sic] 1 "
      "dogs'x' / '3/'[0-9]/ ran, ran? {No}\n== Sub ==\n=== Deep ===\n==== Deeper ====\n(open ( twice) and ) "
      "( "
      "never closed. A well-known N\u00b0end.\n");
  EXPECT_EQ(detokenize_wikitext("a : b : c ; ; d . . e \"\" ( \u00a0x\u2003) '  ' ' alone"),
            "a: b: c; ; d. . e \"\" (x) '' ' alone");
}

TEST(Wikitext, PagesBeginAtHeadingsOfTheFirstLevel) {
  EXPECT_EQ(split_wikitext(" \n = A = \n \n text = x = \n = = Part = = \n more \n = B = \n b\n"),
            (std::vector<std::string>{" = A = \n \n text = x = \n = = Part = = \n more ", " = B = \n b\n"}));
  EXPECT_EQ(split_wikitext("= A =\n= B ="), (std::vector<std::string>{"= A =", "= B ="}));
  EXPECT_EQ(split_wikitext("no heading"), (std::vector<std::string>{"no heading"}));
}

class WikitextTask : public testing::Test {
 protected:
  Json measure(const std::filesystem::path& data, const TaskOptions& options) const {
    Llama model = byte_model();
    const auto task = make_wikitext(data, options, tokenizer_);
    return task->metrics(run_all_items(*task, model));
  }

  const TemporaryDirectory directory_;
  const ByteTokenizer tokenizer_;
};

TEST_F(WikitextTask, ALogLikelihoodOverWordsAndBytes) {
  directory_.write("wiki.test.raw", " = A = \n one , two \n = B = \n three \n");
  TaskOptions options;
  options.max_positions = 256;
  const Json metrics = measure(directory_.path(), options);
  EXPECT_EQ(metrics["n"], 2);
  EXPECT_EQ(metrics["windows"], 2);
  // BOS twice: once before the page, once of the page as the tokenizer encodes it.
  Llama model = byte_model();
  double sum = 0;
  for (const char* text : {" = A =\none, two ", " = B =\nthree\n"}) {
    ScoredSequence sequence{encode_raw_prompt(text, tokenizer_), 0};
    sequence.targets = static_cast<int64_t>(sequence.tokens.size());
    sequence.tokens.insert(sequence.tokens.begin(), 1);
    const ScoredSequence* one = &sequence;
    sum += score_sequences(model, std::span(&one, 1)).log_likelihoods.front();
  }
  constexpr double kWords = 8 + 6, kBytes = 19 + 16;
  EXPECT_NEAR(metrics["word_perplexity"], std::exp(-sum / kWords), 1e-4 * std::exp(-sum / kWords));
  EXPECT_NEAR(metrics["byte_perplexity"], std::exp(-sum / kBytes), 1e-4);
  EXPECT_NEAR(metrics["bits_per_byte"], -sum / kBytes / std::log(2.0), 1e-5);
  EXPECT_GT(metrics["word_perplexity_stderr"], 0);
  const auto task = make_wikitext(directory_.path(), options, tokenizer_);
  const std::vector<Json> results = run_all_items(*task, model);
  EXPECT_EQ(results[1]["words"], 6);
  EXPECT_EQ(results[1]["bytes"], 16);
}

TEST_F(WikitextTask, ALimitIsOfPagesAndShorterWindowsReadLess) {
  const auto file = directory_.write("test.jsonl", R"({"page":"= A =\n one two three"})"
                                                   "\n"
                                                   R"({"page":"= B ="})"
                                                   "\n");
  TaskOptions options;
  options.max_positions = 256;
  options.limit = 1;
  const Json whole = measure(file, options);
  EXPECT_EQ(whole["n"], 1);
  EXPECT_FALSE(whole.contains("word_perplexity_stderr"));
  options.max_positions = 8;
  EXPECT_EQ(make_wikitext(file, options, tokenizer_)->items(), 3);  // 1 + 20 predictions
  EXPECT_NE(measure(directory_.path(), options)["word_perplexity"], whole["word_perplexity"]);
}

TEST_F(WikitextTask, WhatIsMissingIsNamed) {
  const auto empty = TemporaryDirectory();
  EXPECT_THROW(make_wikitext(empty.path(), {}, tokenizer_), BadInput);
  EXPECT_THROW(make_wikitext(directory_.write("a.jsonl", "{\"text\":\"x\"}\n"), {}, tokenizer_), BadInput);
  EXPECT_THROW(make_wikitext(directory_.write("a.raw", "\xFF"), {}, tokenizer_), BadInput);
}

}  // namespace
}  // namespace satune
