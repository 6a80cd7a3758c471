// log p(continuation | context) as lm-eval 0.4.13 computes it, many at a time. What several sequences begin
// with (few-shot examples, the context that the choices of an item share) goes through the model once.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "model/llama.h"

namespace satune {

/// Tokens of a context and its continuation. The last `targets` of them are what is scored.
struct ScoredSequence {
  std::vector<int32_t> tokens;
  int64_t targets = 0;

  /// What goes into the model: all but the last token.
  std::span<const int32_t> inputs() const { return std::span(tokens).first(tokens.size() - 1); }
};

/// What stands in the place of a context where there is none: BOS, or EOS without one.
std::optional<int32_t> first_context_token(const Tokenizer& tokenizer);

/// White space at the end of the context moves to the continuation. Both are encoded together
/// (encode_raw_prompt()), and what goes beyond the length of the context encoded alone is the continuation:
/// the sequence is the encoded context, or first_context_token() for an empty one, and that rest. Of a
/// sequence of more than max_length + 1 tokens the first ones are cut off. Throws BadInput with `where` for a
/// continuation without a token or one longer than max_length, which lm-eval cannot score either.
ScoredSequence encode_scored(std::string_view context, std::string_view continuation,
                             const Tokenizer& tokenizer, int64_t max_length, std::string_view where);

/// Sequences as documents that continue one another (DeviceBatch::parents). Every sequence is a path.
struct SequenceTree {
  struct Step {
    int64_t first_row = 0;  ///< of the document in the batch
    int64_t depth = 0;      ///< tokens before it
    int64_t length = 0;
  };
  std::vector<int32_t> tokens, positions;      ///< of the batch
  std::vector<int64_t> document_starts = {0};  ///< [documents + 1]
  std::vector<int64_t> parents;                ///< by document
  std::vector<std::vector<Step>> paths;        ///< by sequence

  /// The row of the batch that holds input `position` of a sequence.
  int64_t row(int64_t sequence, int64_t position) const;
};

/// Tokens that make another document in the tree worth its calls.
inline constexpr int64_t kWorthSharing = 16;

/// Inputs of the sequences as a tree. A beginning is shared where that saves at least `worth` tokens in all;
/// equal inputs always are. `worth` = none shares those only, so that no document has a parent.
SequenceTree make_sequence_tree(std::span<const ScoredSequence* const> sequences,
                                std::optional<int64_t> worth);

/// What score_sequences() shares on the model's device: on a card only equal inputs, whose attention takes no
/// documents that continue others.
std::optional<int64_t> worth_sharing(const at::Device& device);

/// Orders items so that those that begin alike are neighbours, and cuts them into passes of about
/// `batch_tokens` tokens (at least one item each), or of `batch_items` items where that is not 0. Beginnings
/// count once where they are shared (`worth`, as of make_sequence_tree()). items[i] are the sequences of item
/// i.
std::vector<std::vector<int64_t>> plan_scoring(const std::vector<std::vector<ScoredSequence>>& sequences,
                                               const std::vector<int64_t>& items, int64_t batch_items,
                                               int64_t batch_tokens, std::optional<int64_t> worth);

struct Scores {
  std::vector<double> log_likelihoods;  ///< by sequence
  int64_t tokens = 0;                   ///< that went through the model
};

/// Scores sequences in one pass of the model. Throws std::runtime_error when a score is not finite.
Scores score_sequences(Llama& model, std::span<const ScoredSequence* const> sequences);

}  // namespace satune
