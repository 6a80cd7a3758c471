#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "model/ops/attention_devices.h"
#include "model/ops/dispatch.h"

namespace satune {
namespace {

/// Sums gradients of the query heads that share a key/value head: [T, H, D] -> [T, K, D].
at::Tensor sum_groups(const at::Tensor& x_THD, int64_t kv_heads) {
  return x_THD.unflatten(1, {kv_heads, x_THD.size(1) / kv_heads}).sum(2);
}

void document_backward(const at::Tensor& d_out_THD, const at::Tensor& q_THD, const at::Tensor& k_TKD,
                       const at::Tensor& v_TKD, const at::Tensor& d_q, const at::Tensor& d_k,
                       const at::Tensor& d_v) {
  const int64_t groups = q_THD.size(1) / k_TKD.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q_THD.size(2)));
  const at::ScalarType wide = statistics_type(q_THD.scalar_type());
  const at::Tensor p_HTS = attention_probabilities(q_THD, k_TKD, /*causal=*/true);
  const at::Tensor d_out_HTD = d_out_THD.to(wide).transpose(0, 1);
  d_v.copy_(sum_groups(at::matmul(p_HTS.transpose(1, 2), d_out_HTD).transpose(0, 1), k_TKD.size(1)));
  if (!d_q.defined()) return;
  const at::Tensor v_HTD = v_TKD.to(wide).repeat_interleave(groups, 1).transpose(0, 1);
  const at::Tensor k_HTD = k_TKD.to(wide).repeat_interleave(groups, 1).transpose(0, 1);
  const at::Tensor d_p = at::matmul(d_out_HTD, v_HTD.transpose(1, 2));
  const at::Tensor d_scores = p_HTS * (d_p - (d_p * p_HTS).sum(-1, true)) * scale;
  d_q.copy_(at::matmul(d_scores, k_HTD).transpose(0, 1));
  d_k.copy_(sum_groups(at::matmul(d_scores.transpose(1, 2), q_THD.to(wide).transpose(0, 1)).transpose(0, 1),
                       k_TKD.size(1)));
}

}  // namespace

AttentionOut eager_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts) {
  AttentionOut result{at::empty(q_NHD.sizes(), q_NHD.options()), {}, {AttentionKernel::kEager}};
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t start = starts[i], length = starts[i + 1] - start;
    const at::Tensor probabilities = attention_probabilities(q_NHD.narrow(0, start, length),
                                                             k_NKD.narrow(0, start, length), /*causal=*/true);
    result.out_NHD.narrow(0, start, length)
        .copy_(apply_probabilities(probabilities, v_NKD.narrow(0, start, length)));
  }
  return result;
}

void eager_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                    const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t start = starts[i], length = starts[i + 1] - start;
    const auto rows = [&](const at::Tensor& x) { return x.defined() ? x.narrow(0, start, length) : x; };
    document_backward(rows(d_out_NHD), rows(q_NHD), rows(k_NKD), rows(v_NKD), rows(d_q_NHD), rows(d_k_NKD),
                      rows(d_v_NKD));
  }
}

at::Tensor attention_probabilities(const at::Tensor& q_THD, const at::Tensor& k_SKD, bool causal) {
  const int64_t groups = q_THD.size(1) / k_SKD.size(1);
  const at::ScalarType wide = statistics_type(q_THD.scalar_type());
  const at::Tensor q_HTD = q_THD.to(wide).transpose(0, 1);
  const at::Tensor k_HSD = k_SKD.to(wide).repeat_interleave(groups, 1).transpose(0, 1);
  at::Tensor scores_HTS =
      at::matmul(q_HTD, k_HSD.transpose(1, 2)) / std::sqrt(static_cast<double>(q_THD.size(2)));
  if (causal) {
    // Query t sits at position S - T + t.
    const int64_t query = q_THD.size(0), key = k_SKD.size(0);
    const at::Tensor future = at::ones({query, key}, q_THD.options().dtype(at::kBool)).triu(key - query + 1);
    scores_HTS.masked_fill_(future, -std::numeric_limits<double>::infinity());
  }
  return at::softmax(scores_HTS, -1);
}

at::Tensor apply_probabilities(const at::Tensor& probabilities_HTS, const at::Tensor& v_SKD) {
  const int64_t groups = probabilities_HTS.size(0) / v_SKD.size(1);
  const at::Tensor v_HSD =
      v_SKD.to(probabilities_HTS.scalar_type()).repeat_interleave(groups, 1).transpose(0, 1);
  return at::matmul(probabilities_HTS, v_HSD).transpose(0, 1).to(v_SKD.scalar_type()).contiguous();
}

}  // namespace satune
