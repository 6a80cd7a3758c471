#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <algorithm>

#include "model/ops/attention_devices.h"

namespace satune {
namespace {

constexpr int64_t kCausalFromTopLeft = 1;  // custom_mask_type of LibTorch's memory-efficient attention

int64_t longest_document(const std::vector<int64_t>& starts) {
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < starts.size(); ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
  return longest;
}

/// LibTorch's flash backward has no argument for the order in which it adds dQ: it reads this flag of the
/// process, which is as it was once this is gone. LibTorch also fills new tensors with NaN under it, if not
/// told otherwise.
class FixedOrder {
 public:
  explicit FixedOrder(bool wanted)
      : flag_(context_.deterministicAlgorithms()),
        warns_(context_.deterministicAlgorithmsWarnOnly()),
        fills_(context_.deterministicFillUninitializedMemory()) {
    context_.setDeterministicFillUninitializedMemory(false);
    context_.setDeterministicAlgorithms(wanted, /*warn_only=*/false);
  }
  FixedOrder(const FixedOrder&) = delete;
  FixedOrder& operator=(const FixedOrder&) = delete;
  ~FixedOrder() {
    context_.setDeterministicAlgorithms(flag_, warns_);
    context_.setDeterministicFillUninitializedMemory(fills_);
  }

 private:
  at::Context& context_ = at::globalContext();
  bool flag_, warns_, fills_;
};

/// [N, K, D] as the batch of one [1, N, H, D] with a head for each query head.
at::Tensor heads_of_queries(const at::Tensor& x_NKD, int64_t heads) {
  const int64_t group = heads / x_NKD.size(1);
  return (group == 1 ? x_NKD : x_NKD.repeat_interleave(group, 1)).unsqueeze(0);
}

AttentionOut efficient_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const at::Tensor& starts, int64_t longest, const AttentionChoice& choice) {
  const int64_t heads = q_NHD.size(1);
  const auto [out, log_sum_exp, seed, offset, longest_q, longest_k] = at::_efficient_attention_forward(
      q_NHD.unsqueeze(0), heads_of_queries(k_NKD, heads), heads_of_queries(v_NKD, heads), /*bias=*/{}, starts,
      starts, longest, longest, 0.0, kCausalFromTopLeft, /*compute_log_sumexp=*/true);
  return {out.squeeze(0), {log_sum_exp, starts, seed, offset}, choice};
}

void efficient_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward, int64_t longest,
                        const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  const int64_t heads = q_NHD.size(1);
  // Several splits of the keys add to dQ as they are ready.
  const auto splits = forward.choice.in_fixed_order ? std::optional<int64_t>(1) : std::nullopt;
  const auto [d_q, d_k, d_v, d_bias] = at::_efficient_attention_backward(
      d_out_NHD.unsqueeze(0), q_NHD.unsqueeze(0), heads_of_queries(k_NKD, heads),
      heads_of_queries(v_NKD, heads), /*bias=*/{}, forward.out_NHD.unsqueeze(0), forward.saved[1],
      forward.saved[1], longest, longest, forward.saved[0], 0.0, forward.saved[2], forward.saved[3],
      kCausalFromTopLeft, /*bias_requires_grad=*/false, /*scale=*/{}, splits);
  const auto sum_groups = [](const at::Tensor& to_NKD, const at::Tensor& gradient_1NHD) {
    const at::Tensor gradient_NHD = gradient_1NHD.squeeze(0);
    if (to_NKD.size(1) == gradient_NHD.size(1)) {
      to_NKD.copy_(gradient_NHD);
    } else {
      to_NKD.copy_(gradient_NHD.unflatten(1, {to_NKD.size(1), -1}).sum(2));
    }
  };
  if (d_q_NHD.defined()) d_q_NHD.copy_(d_q.squeeze(0));
  if (d_k_NKD.defined()) sum_groups(d_k_NKD, d_k);
  sum_groups(d_v_NKD, d_v);
}

}  // namespace

at::Tensor starts_on(const at::Tensor& q_NHD, const std::vector<int64_t>& starts, const at::Tensor& given) {
  return given.defined() ? given : at::tensor(starts, at::kLong).to(at::kInt).to(q_NHD.device());
}

AttentionOut flash_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts, const AttentionOptions& options) {
  const at::Tensor on_card = starts_on(q_NHD, starts, options.starts_on_card);
  const int64_t longest = longest_document(starts);
  if (q_NHD.scalar_type() == at::kFloat)
    return efficient_forward(q_NHD, k_NKD, v_NKD, on_card, longest, options.choice);
  const auto [out, log_sum_exp, rng_state, unused, debug] = at::_flash_attention_forward(
      q_NHD, k_NKD, v_NKD, on_card, on_card, longest, longest, 0.0, /*is_causal=*/true,
      /*return_debug_mask=*/false);
  return {out, {log_sum_exp, on_card, rng_state, unused}, options.choice};
}

void flash_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, const std::vector<int64_t>& starts,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  const int64_t longest = longest_document(starts);
  if (q_NHD.scalar_type() == at::kFloat) {
    efficient_backward(d_out_NHD, q_NHD, k_NKD, v_NKD, forward, longest, d_q_NHD, d_k_NKD, d_v_NKD);
    return;
  }
  const FixedOrder order(forward.choice.in_fixed_order);
  const auto [d_q, d_k, d_v] = at::_flash_attention_backward(
      d_out_NHD, q_NHD, k_NKD, v_NKD, forward.out_NHD, forward.saved[0], forward.saved[1], forward.saved[1],
      longest, longest, 0.0, /*is_causal=*/true, forward.saved[2], forward.saved[3]);
  if (d_q_NHD.defined()) d_q_NHD.copy_(d_q);
  if (d_k_NKD.defined()) d_k_NKD.copy_(d_k);
  d_v_NKD.copy_(d_v);
}

}  // namespace satune
