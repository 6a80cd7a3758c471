#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "model/ops/attention_devices.h"
#include "model/ops/dispatch.h"

namespace satune {
namespace {

bool has_flash_kernel(const at::Tensor& q) {
  return q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
}

at::Tensor cumulative_lengths(const std::vector<int64_t>& starts, at::Device device) {
  return at::tensor(starts, at::kLong).to(at::kInt).to(device);
}

int64_t longest_document(const std::vector<int64_t>& starts) {
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < starts.size(); ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
  return longest;
}

/// Sums gradients of the query heads that share a key/value head: [T, H, D] -> [T, K, D].
at::Tensor sum_groups(const at::Tensor& x_THD, int64_t kv_heads) {
  return x_THD.unflatten(1, {kv_heads, x_THD.size(1) / kv_heads}).sum(2);
}

void backward_document(const at::Tensor& d_out_THD, const at::Tensor& q_THD, const at::Tensor& k_TKD,
                       const at::Tensor& v_TKD, const at::Tensor& d_q, const at::Tensor& d_k,
                       const at::Tensor& d_v) {
  const int64_t groups = q_THD.size(1) / k_TKD.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q_THD.size(2)));
  const at::Tensor p_HTS = attention_probabilities(q_THD, k_TKD, /*causal=*/true);
  const at::Tensor d_out_HTD = d_out_THD.transpose(0, 1);
  const at::Tensor v_HTD = v_TKD.repeat_interleave(groups, 1).transpose(0, 1);
  const at::Tensor k_HTD = k_TKD.repeat_interleave(groups, 1).transpose(0, 1);
  d_v.copy_(sum_groups(at::matmul(p_HTS.transpose(1, 2), d_out_HTD).transpose(0, 1), k_TKD.size(1)));
  if (!d_q.defined()) return;
  const at::Tensor d_p = at::matmul(d_out_HTD, v_HTD.transpose(1, 2));
  const at::Tensor d_scores = p_HTS * (d_p - (d_p * p_HTS).sum(-1, true)) * scale;
  d_q.copy_(at::matmul(d_scores, k_HTD).transpose(0, 1));
  d_k.copy_(
      sum_groups(at::matmul(d_scores.transpose(1, 2), q_THD.transpose(0, 1)).transpose(0, 1), k_TKD.size(1)));
}

}  // namespace

AttentionOut attention_forward_cuda(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                                    const std::vector<int64_t>& starts, const at::Tensor& starts_on_card) {
  if (has_flash_kernel(q_NHD)) {
    const at::Tensor lengths =
        starts_on_card.defined() ? starts_on_card : cumulative_lengths(starts, q_NHD.device());
    const int64_t longest = longest_document(starts);
    const auto [out, log_sum_exp, rng_state, unused, debug] = at::_flash_attention_forward(
        q_NHD, k_NKD, v_NKD, lengths, lengths, longest, longest, 0.0, /*is_causal=*/true,
        /*return_debug_mask=*/false);
    return {out, {log_sum_exp, lengths, rng_state, unused}};
  }
  AttentionOut result{at::empty(q_NHD.sizes(), q_NHD.options()), {}};
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t start = starts[i], length = starts[i + 1] - start;
    const at::Tensor probabilities = attention_probabilities(q_NHD.narrow(0, start, length),
                                                             k_NKD.narrow(0, start, length), /*causal=*/true);
    result.out_NHD.narrow(0, start, length)
        .copy_(apply_probabilities(probabilities, v_NKD.narrow(0, start, length)));
  }
  return result;
}

void attention_backward_cuda(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                             const at::Tensor& v_NKD, const AttentionOut& forward,
                             const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                             const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  if (has_flash_kernel(q_NHD)) {
    const int64_t longest = longest_document(starts);
    const auto [d_q, d_k, d_v] = at::_flash_attention_backward(
        d_out_NHD, q_NHD, k_NKD, v_NKD, forward.out_NHD, forward.saved[0], forward.saved[1], forward.saved[1],
        longest, longest, 0.0, /*is_causal=*/true, forward.saved[2], forward.saved[3]);
    if (d_q_NHD.defined()) d_q_NHD.copy_(d_q);
    if (d_k_NKD.defined()) d_k_NKD.copy_(d_k);
    d_v_NKD.copy_(d_v);
    return;
  }
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t start = starts[i], length = starts[i + 1] - start;
    const auto rows = [&](const at::Tensor& x) { return x.defined() ? x.narrow(0, start, length) : x; };
    backward_document(rows(d_out_NHD), rows(q_NHD), rows(k_NKD), rows(v_NKD), rows(d_q_NHD), rows(d_k_NKD),
                      rows(d_v_NKD));
  }
}

}  // namespace satune
