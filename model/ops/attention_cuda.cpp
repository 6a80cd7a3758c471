#include <ATen/ATen.h>

#include <algorithm>

#include "model/ops/attention_devices.h"

namespace satune {
namespace {

at::Tensor cumulative_lengths(const std::vector<int64_t>& starts, at::Device device) {
  return at::tensor(starts, at::kLong).to(at::kInt).to(device);
}

int64_t longest_document(const std::vector<int64_t>& starts) {
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < starts.size(); ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
  return longest;
}

/// [N, heads, D] as the batch [documents, heads, T, D] that cuDNN takes. In one piece: of other strides wrong
/// results are reported (diffusers, attention_dispatch.py).
at::Tensor batch_of(const at::Tensor& x_NHD, int64_t document_length) {
  return x_NHD.contiguous().unflatten(0, {-1, document_length}).transpose(1, 2);
}

at::Tensor rows_of(const at::Tensor& x_BHTD) {
  return x_BHTD.transpose(1, 2).flatten(0, 1);
}

}  // namespace

AttentionOut flash_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts, const at::Tensor& starts_on_card) {
  const at::Tensor lengths =
      starts_on_card.defined() ? starts_on_card : cumulative_lengths(starts, q_NHD.device());
  const int64_t longest = longest_document(starts);
  const auto [out, log_sum_exp, rng_state, unused, debug] = at::_flash_attention_forward(
      q_NHD, k_NKD, v_NKD, lengths, lengths, longest, longest, 0.0, /*is_causal=*/true,
      /*return_debug_mask=*/false);
  return {out, {log_sum_exp, lengths, rng_state, unused}, AttentionKernel::kFlash};
}

void flash_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, const std::vector<int64_t>& starts,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  const int64_t longest = longest_document(starts);
  const auto [d_q, d_k, d_v] = at::_flash_attention_backward(
      d_out_NHD, q_NHD, k_NKD, v_NKD, forward.out_NHD, forward.saved[0], forward.saved[1], forward.saved[1],
      longest, longest, 0.0, /*is_causal=*/true, forward.saved[2], forward.saved[3]);
  if (d_q_NHD.defined()) d_q_NHD.copy_(d_q);
  if (d_k_NKD.defined()) d_k_NKD.copy_(d_k);
  d_v_NKD.copy_(d_v);
}

AttentionOut cudnn_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           int64_t document_length) {
  const auto [out, log_sum_exp, starts_q, starts_k, longest_q, longest_k, seed, offset, debug] =
      at::_cudnn_attention_forward(batch_of(q_NHD, document_length), batch_of(k_NKD, document_length),
                                   batch_of(v_NKD, document_length), /*attn_bias=*/{}, /*cum_seq_q=*/{},
                                   /*cum_seq_k=*/{}, document_length, document_length,
                                   /*compute_log_sumexp=*/true, 0.0, /*is_causal=*/true,
                                   /*return_debug_mask=*/false);
  return {rows_of(out).contiguous(), {log_sum_exp, seed, offset}, AttentionKernel::kCudnn};
}

void cudnn_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, int64_t document_length,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  const auto batch = [&](const at::Tensor& x) { return batch_of(x, document_length); };
  const auto [d_q, d_k, d_v] = at::_cudnn_attention_backward(
      batch(d_out_NHD), batch(q_NHD), batch(k_NKD), batch(v_NKD), batch(forward.out_NHD), forward.saved[0],
      forward.saved[1], forward.saved[2], /*attn_bias=*/{}, /*cum_seq_q=*/{}, /*cum_seq_k=*/{},
      document_length, document_length, 0.0, /*is_causal=*/true);
  if (d_q_NHD.defined()) d_q_NHD.copy_(rows_of(d_q));
  if (d_k_NKD.defined()) d_k_NKD.copy_(rows_of(d_k));
  d_v_NKD.copy_(rows_of(d_v));
}

}  // namespace satune
