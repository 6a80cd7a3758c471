// The head: projection to the vocabulary and cross-entropy in one op, a chunk of rows at a time, so that the
// full logits never exist. Rows without a target are not projected at all; which these are the host has to
// know, so that it need not wait for a card to count them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace satune {

/// Rows of a chunk. On a CPU 512 (from there on the products are as fast as in one piece: BENCHMARKS.md), or
/// as many more as make 16 MiB of fp32 logits; on a card as many as make 256 MiB, which bounds both.
int64_t cross_entropy_chunk_rows(int64_t vocabulary, bool on_card);

/// The rows that have a target, and which. In a batch ascending, each row once.
struct Targets {
  at::Tensor rows_M;  ///< int64: places among the N hidden states
  at::Tensor ids_M;   ///< int64: tokens

  int64_t count() const { return ids_M.defined() ? ids_M.numel() : 0; }
};

struct CrossEntropySums {
  at::Tensor loss;     ///< scalar fp64: sum over targets of log(sum exp(logits)) - logits[target]
  at::Tensor correct;  ///< scalar int64: targets that are the argmax (the lowest index of equals)
};

/// Forward alone. hidden [N, C], weight [V, C]. `losses_M`, when given, receives each target's loss.
CrossEntropySums linear_cross_entropy_forward(const at::Tensor& hidden_NC, const at::Tensor& weight_VC,
                                              const Targets& targets, at::Tensor* losses_M = nullptr);

/// losses_M by row: [N], 0 for a row without a target.
at::Tensor losses_by_row(const at::Tensor& losses_M, const Targets& targets, int64_t rows);

struct CrossEntropyGradients {
  CrossEntropySums sums;
  at::Tensor d_hidden_NC;
};

/// Forward and the gradients of (loss sum * scale). d_weight [V, C] is written, or added to with
/// `accumulate`; undefined where the head is frozen. Over several chunks it is summed in fp32.
CrossEntropyGradients linear_cross_entropy_backward(const at::Tensor& hidden_NC, const at::Tensor& weight_VC,
                                                    const Targets& targets, double scale,
                                                    const at::Tensor& d_weight_VC, bool accumulate);

}  // namespace satune
