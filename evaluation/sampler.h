// From logits to the next token: greedy, or drawn, after the repetition penalty, temperature, top-k and top-p
// in the order in which transformers applies them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/random.h"

namespace satune {

struct SamplingOptions {
  double temperature = 0;         ///< 0 = greedy
  int64_t top_k = 0;              ///< 0 = all tokens
  double top_p = 1;               ///< smallest set of most probable tokens whose mass reaches it
  double repetition_penalty = 1;  ///< of every token that stands in prompt or answer; from 0.001 to 1000
  uint64_t seed = 42;
};

/// Throws BadInput naming the option for a negative or non-finite temperature, a negative top_k, a top_p
/// outside (0, 1], or a repetition penalty outside [0.001, 1000].
void check_sampling_options(const SamplingOptions& options);

/// One text's draws, a stream of random numbers of its own: seed, `index` (which prompt of several it is) and
/// the place in the text decide, whatever else is generated beside it.
class Sampler {
 public:
  /// Throws BadInput as check_sampling_options().
  explicit Sampler(SamplingOptions options, uint64_t index = 0, std::span<const int32_t> prompt = {});

  /// The chosen id. Equal logits are ranked by id, lowest first. Throws std::runtime_error when, after the
  /// penalty, no logit is finite or one is NaN or positive infinity.
  int32_t next(std::span<const float> logits);

 private:
  /// The logits with those of the tokens seen so far divided by the penalty (multiplied where negative).
  std::span<const float> penalised(std::span<const float> logits);
  int32_t draw(std::span<const float> logits);

  SamplingOptions options_;
  RandomStream random_;
  std::vector<bool> seen_;  ///< by id; only with a penalty
  std::vector<float> scratch_;
};

}  // namespace satune
