// From logits to the next token: greedy, or drawn after temperature, top-k and top-p in the order that
// transformers applies them.
#pragma once

#include <cstdint>
#include <span>

#include "data/random.h"

namespace satune {

struct SamplingOptions {
  double temperature = 0;  ///< 0 = greedy
  int64_t top_k = 0;       ///< 0 = all tokens
  double top_p = 1;        ///< smallest set of most probable tokens whose mass reaches it
  uint64_t seed = 42;
};

/// Throws BadInput naming the option for a negative or non-finite temperature, a negative top_k, or a top_p
/// outside (0, 1].
void check_sampling_options(const SamplingOptions& options);

/// Draws from its own stream of random numbers: the same seed and logits give the same tokens everywhere.
class Sampler {
 public:
  explicit Sampler(SamplingOptions options);

  /// The chosen id. Equal logits are ranked by id, lowest first. Throws std::runtime_error when no logit is
  /// finite or one is NaN.
  int32_t next(std::span<const float> logits);

 private:
  SamplingOptions options_;
  RandomStream random_;
};

}  // namespace satune
