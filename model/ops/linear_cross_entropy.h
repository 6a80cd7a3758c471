// The head: projection to the vocabulary and cross-entropy in one op, a chunk of rows at a time, so that the
// full logits never exist. Rows without a target are not projected at all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace satune {

/// Rows of a chunk. On a CPU 512 (from there on the products are as fast as in one piece: BENCHMARKS.md), or
/// as many more as make 16 MiB of fp32 logits; on a card as many as make 256 MiB, which bounds both.
int64_t cross_entropy_chunk_rows(int64_t vocabulary, bool on_card);

struct CrossEntropySums {
  at::Tensor loss;     ///< scalar fp64: sum over targets of log(sum exp(logits)) - logits[target]
  at::Tensor correct;  ///< scalar int64: targets that are the argmax (the lowest index of equals)
};

/// Forward alone. hidden [N, C], weight [V, C], targets [N] int64 (negative = no target).
/// `losses_N`, when given, receives each row's loss (0 without a target).
CrossEntropySums linear_cross_entropy_forward(const at::Tensor& hidden_NC, const at::Tensor& weight_VC,
                                              const at::Tensor& targets_N, at::Tensor* losses_N = nullptr);

struct CrossEntropyGradients {
  CrossEntropySums sums;
  at::Tensor d_hidden_NC;
};

/// Forward and the gradients of (loss sum * scale). d_weight [V, C] is written, or added to with
/// `accumulate`; undefined where the head is frozen. Over several chunks it is summed in fp32.
CrossEntropyGradients linear_cross_entropy_backward(const at::Tensor& hidden_NC, const at::Tensor& weight_VC,
                                                    const at::Tensor& targets_N, double scale,
                                                    const at::Tensor& d_weight_VC, bool accumulate);

}  // namespace satune
