// The kernels behind attention.h, each a forward and its backward with that contract. Backwards leave d_q and
// d_k alone where they are undefined.
#pragma once

#include "model/ops/attention.h"

namespace satune {

AttentionOut eager_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts);
void eager_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                    const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

/// On the CPU, of every type.
AttentionOut flash_cpu_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const std::vector<int64_t>& starts);
void flash_cpu_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward,
                        const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                        const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

/// The offsets of documents as int32 on the card of q: as given, or made, for which the host waits.
at::Tensor starts_on(const at::Tensor& q_NHD, const std::vector<int64_t>& starts, const at::Tensor& given);

/// On a card, bf16, fp16 and fp32: the variable-length kernels over all documents at once. Of fp32, whose
/// kernels have no grouped heads, keys and values are repeated.
AttentionOut flash_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts, const AttentionOptions& options);
/// What flash_backward() takes of 16-bit tensors, where another kernel made `out`: log_sum_HN contiguous.
AttentionOut flash_forward_made(const at::Tensor& out_NHD, const at::Tensor& log_sum_HN,
                                const at::Tensor& starts_on_card, const AttentionChoice& choice);
void flash_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, const std::vector<int64_t>& starts,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

}  // namespace satune
