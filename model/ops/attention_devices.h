// The attention of cards; attention.h is the contract.
#pragma once

#include "model/ops/attention.h"

namespace satune {

/// bf16 and fp16: the variable-length flash kernel over all documents at once. fp32 and fp64: one document at
/// a time with materialised scores (there is no flash kernel of these types); meant for checks, not for
/// speed.
AttentionOut attention_forward_cuda(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                                    const std::vector<int64_t>& document_starts,
                                    const at::Tensor& starts_on_card);
void attention_backward_cuda(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                             const at::Tensor& v_NKD, const AttentionOut& forward,
                             const std::vector<int64_t>& document_starts, const at::Tensor& d_q_NHD,
                             const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

}  // namespace satune
