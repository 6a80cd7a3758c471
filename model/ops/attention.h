// Causal attention inside documents: softmax(Q K^T / sqrt(D)) V, never across a document border, with grouped
// query heads (query head h reads key/value head h / (H / K)). No S x S tensor exists.
//
// Shared Attention uses the identity softmax(Q_a K_a^T) V_l = attention(Q_a, K_a, V_l): a shared layer calls
// this with its anchor's q and k and its own v.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace satune {

struct AttentionOut {
  at::Tensor out_NHD;             ///< contiguous
  std::vector<at::Tensor> saved;  ///< log-sum-exp per document, for the backward
};

/// q [N, H, D], k and v [N, K, D]; rows may be strided (views into a fused projection).
/// document_starts [documents + 1]: offsets into N, last = N. parents: DeviceBatch::parents; with any, on the
/// CPU only, and nothing is saved. starts_on_card: the offsets as int32 on the card of q, for which the host
/// waits where they are undefined.
AttentionOut attention_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const std::vector<int64_t>& document_starts,
                               const std::vector<int64_t>& parents = {},
                               const at::Tensor& starts_on_card = {});

/// Writes d_q [N, H, D], d_k and d_v [N, K, D] (preallocated, rows may be strided). d_q and d_k are undefined
/// where nobody needs them.
void attention_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward,
                        const std::vector<int64_t>& document_starts, const at::Tensor& d_q_NHD,
                        const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

/// The oracle: the probabilities [H, N, N] of one document, materialised (fp32 softmax, fp64 for fp64); tests
/// and decode only.
at::Tensor attention_probabilities(const at::Tensor& q_NHD, const at::Tensor& k_NKD, bool causal);

/// probabilities [H, T, S] times v [S, K, D] -> [T, H, D].
at::Tensor apply_probabilities(const at::Tensor& probabilities_HTS, const at::Tensor& v_SKD);

}  // namespace satune
