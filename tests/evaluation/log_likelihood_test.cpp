#include "evaluation/log_likelihood.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "data/files/error.h"
#include "data/prompt_template.h"
#include "tests/evaluation/fixtures.h"

namespace satune {
namespace {

/// From the logits of the whole sequence, by itself.
double reference(Llama& model, const ScoredSequence& sequence) {
  const auto N = static_cast<int64_t>(sequence.tokens.size());
  DeviceBatch batch;
  batch.tokens_N =
      at::tensor(at::IntArrayRef(std::vector<int64_t>(sequence.tokens.begin(), sequence.tokens.end())));
  batch.positions_N = at::arange(N, at::kLong);
  batch.document_starts = {0, N};
  const at::Tensor log_p_NV = at::log_softmax(model.logits(batch).to(at::kDouble), -1);
  double sum = 0;
  for (int64_t i = N - sequence.targets; i < N; ++i)
    sum += log_p_NV[i - 1][sequence.tokens[static_cast<size_t>(i)]].item<double>();
  return sum;
}

std::vector<ScoredSequence> encode_all(const std::vector<std::pair<std::string, std::string>>& pairs) {
  const ByteTokenizer tokenizer;
  std::vector<ScoredSequence> sequences;
  for (const auto& [context, continuation] : pairs)
    sequences.push_back(encode_scored(context, continuation, tokenizer, 200, "test"));
  return sequences;
}

std::vector<const ScoredSequence*> pointers(const std::vector<ScoredSequence>& sequences) {
  std::vector<const ScoredSequence*> result;
  for (const ScoredSequence& sequence : sequences) result.push_back(&sequence);
  return result;
}

const std::string kShots = "Examples that every question begins with, long enough to be worth it.\n\n";
const std::vector<std::pair<std::string, std::string>> kPairs = {
    {kShots + "Question one is this, and it has two answers:", " yes"},
    {kShots + "Question one is this, and it has two answers:", " no, not at all"},
    {kShots + "Question one is this, and it has two answers:", " n"},
    {kShots + "Question two:", " A"},
    {kShots + "Question two:", " B"},
    {"Something else", " entirely"},
    {kShots, "x"},
    {"", "Without a context"},
};

TEST(LogLikelihood, SharedBeginningsChangeNothing) {
  const std::vector<ScoredSequence> sequences = encode_all(kPairs);
  for (const char* sharing : {"", "2-3", "1-3"}) {
    Llama model = byte_model(sharing);
    const Scores scores = score_sequences(model, pointers(sequences));
    size_t all = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      EXPECT_NEAR(scores.log_likelihoods[i], reference(model, sequences[i]), 1e-4) << sharing << i;
      all += sequences[i].inputs().size();
    }
    EXPECT_LT(scores.tokens, static_cast<int64_t>(all) / 2);
  }
}

TEST(LogLikelihood, InBf16Too) {
  const std::vector<ScoredSequence> sequences = encode_all(kPairs);
  Llama model = byte_model("2-3", at::kBFloat16);
  const Scores scores = score_sequences(model, pointers(sequences));
  for (size_t i = 0; i < sequences.size(); ++i) {
    const double expected = reference(model, sequences[i]);
    EXPECT_NEAR(scores.log_likelihoods[i], expected, 0.02 * std::abs(expected));
  }
}

TEST(SequenceTree, EveryInputHasItsRow) {
  const std::vector<ScoredSequence> sequences = encode_all(kPairs);
  for (const std::optional<int64_t> worth :
       {std::optional<int64_t>(1), std::optional<int64_t>(16), std::optional<int64_t>()}) {
    const SequenceTree tree = make_sequence_tree(pointers(sequences), worth);
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto inputs = sequences[s].inputs();
      for (size_t i = 0; i < inputs.size(); ++i) {
        const int64_t row = tree.row(static_cast<int64_t>(s), static_cast<int64_t>(i));
        EXPECT_EQ(tree.tokens[row], inputs[i]);
        EXPECT_EQ(tree.positions[row], static_cast<int32_t>(i));
      }
    }
    for (size_t d = 0; d < tree.parents.size(); ++d) {
      EXPECT_LT(tree.parents[d], static_cast<int64_t>(d));
      EXPECT_LT(tree.document_starts[d], tree.document_starts[d + 1]);
      EXPECT_TRUE(worth || tree.parents[d] == -1);
    }
  }
}

TEST(EncodeScored, SpacesBeforeTheSeamGoToTheContinuation) {
  const ByteTokenizer tokenizer;
  const ScoredSequence sequence = encode_scored("ab \n", "c", tokenizer, 200, "test");
  EXPECT_EQ(sequence.tokens, encode_raw_prompt("ab \nc", tokenizer));
  EXPECT_EQ(sequence.targets, 3);
}

TEST(EncodeScored, BosStandsWhereTheTokenizerAddsItOrNothingElseDoes) {
  const ByteTokenizer adds, adds_none(false);
  EXPECT_EQ(encode_scored("ab", "c", adds, 200, "test").tokens.front(), *adds.bos_id());
  const ScoredSequence bare = encode_scored("ab", "c", adds_none, 200, "test");
  EXPECT_EQ(bare.tokens, adds.encode("abc"));
  EXPECT_EQ(bare.targets, 1);
  for (const std::string_view context : {"", " "}) {
    const ScoredSequence first = encode_scored(context, "cd", adds_none, 200, "test");
    EXPECT_EQ(first.tokens, encode_scored(context, "cd", adds, 200, "test").tokens);
    EXPECT_EQ(first.targets, 2 + static_cast<int64_t>(context.size()));
    EXPECT_EQ(first.tokens.front(), *adds.bos_id());
  }
}

TEST(EncodeScored, CutsFromTheLeft) {
  const ByteTokenizer tokenizer;
  const ScoredSequence sequence = encode_scored("abcdef", "gh", tokenizer, 4, "test");
  EXPECT_EQ(tokenizer.decode(sequence.tokens), "defgh");
  EXPECT_EQ(sequence.inputs().size(), 4U);
  EXPECT_THROW(encode_scored("ab", "cdefg", tokenizer, 4, "test"), BadInput);
  EXPECT_THROW(encode_scored("ab", "", tokenizer, 4, "test"), BadInput);
}

TEST(PlanScoring, EveryItemOnceAndWithinTheBudget) {
  std::vector<std::vector<ScoredSequence>> items;
  for (int i = 0; i < 40; ++i) {
    const std::string context = (i % 2 == 0 ? kShots : "") + std::to_string(i) + " is a number; is it even?";
    items.push_back(encode_all({{context, " yes"}, {context, " no"}}));
  }
  std::vector<int64_t> wanted;
  for (int64_t i = 0; i < 40; i += 3) wanted.push_back(i);
  for (const auto& [batch_items, worth] : std::vector<std::pair<int64_t, std::optional<int64_t>>>{
           {0, 1}, {4, 1}, {0, std::nullopt}}) {  // the last as on a card, where beginnings are not shared
    std::vector<int64_t> seen;
    for (const std::vector<int64_t>& pass : plan_scoring(items, wanted, batch_items, 256, worth)) {
      std::vector<const ScoredSequence*> sequences;
      for (const int64_t item : pass)
        for (const ScoredSequence& sequence : items[item]) sequences.push_back(&sequence);
      if (batch_items > 0) {
        EXPECT_LE(pass.size(), 4U);
      } else {
        EXPECT_TRUE(make_sequence_tree(sequences, worth).tokens.size() <= 256U || pass.size() == 1);
      }
      seen.insert(seen.end(), pass.begin(), pass.end());
    }
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, wanted);
  }
}

TEST(Sweep, AModelUnderAnotherPlanIsTheModelLoadedUnderIt) {
  const std::vector<ScoredSequence> sequences = encode_all(kPairs);
  Llama dense = byte_model(), shared = byte_model("2-3");
  // The same values by name; byte_model() draws each tensor by its name.
  Llama view = dense.with_sharing(SharingPlan::parse("2-3", AnchorRule::kBefore, 4));
  EXPECT_EQ(view.table().parameter_count(), shared.table().parameter_count());
  EXPECT_EQ(view.weights().tensor("model.layers.2.mlp.up_proj.weight").const_data_ptr(),
            dense.weights().tensor("model.layers.2.mlp.up_proj.weight").const_data_ptr());
  const Scores found = score_sequences(view, pointers(sequences)),
               expected = score_sequences(shared, pointers(sequences));
  EXPECT_EQ(found.log_likelihoods, expected.log_likelihoods);
}

}  // namespace
}  // namespace satune
