// Token embedding.
#pragma once

#include <ATen/core/Tensor.h>

namespace satune {

/// Rows of weight [V, C] for tokens [N] -> [N, C].
at::Tensor embedding_forward(const at::Tensor& weight_VC, const at::Tensor& tokens_N);

/// d_weight[token] (+)= sum of d_out over the token's occurrences, summed in fp32 in the order of N. Without
/// `accumulate` the rows of tokens that do not occur become zero. On a card d_weight is of d_out's type or
/// fp32.
void embedding_backward(const at::Tensor& d_out_NC, const at::Tensor& tokens_N, const at::Tensor& d_weight_VC,
                        bool accumulate);

}  // namespace satune
