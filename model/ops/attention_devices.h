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

/// On a card, bf16 and fp16: the variable-length kernel over all documents at once.
AttentionOut flash_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts, const at::Tensor& starts_on_card);
void flash_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, const std::vector<int64_t>& starts,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

/// On a card, bf16 and fp16, documents of one length each: a batch of them.
AttentionOut cudnn_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           int64_t document_length);
void cudnn_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, int64_t document_length,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

}  // namespace satune
