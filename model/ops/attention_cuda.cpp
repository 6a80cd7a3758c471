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

/// Consecutive documents [first, end).
struct DocumentRun {
  size_t first = 0, end = 0;
  int64_t longest = 0;
};

/// The memory-efficient kernels have buffers of documents x the longest: a run of documents goes through them
/// at once as long as that is no more than twice its tokens.
std::vector<DocumentRun> runs_of(const std::vector<int64_t>& starts) {
  std::vector<DocumentRun> runs;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t length = starts[i + 1] - starts[i];
    if (!runs.empty()) {
      DocumentRun& last = runs.back();
      const int64_t count = static_cast<int64_t>(i + 1 - last.first),
                    longest = std::max(last.longest, length);
      if (count * longest <= 2 * (starts[i + 1] - starts[last.first])) {
        last.end = i + 1;
        last.longest = longest;
        continue;
      }
    }
    runs.push_back({i, i + 1, length});
  }
  return runs;
}

/// LibTorch's flash backward has no argument for the order in which it adds dQ: it reads this flag of the
/// process, which is as it was once this is gone: one thread at a time. LibTorch also fills new tensors with
/// NaN under it, if not told otherwise.
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

/// What the memory-efficient kernels take of a run of documents.
struct RunOperands {
  at::Tensor q, k, v;  ///< [1, rows of the run, H, D]
  at::Tensor starts;   ///< from its first row on, int32 on the card
  int64_t first_row = 0, rows = 0;

  RunOperands(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
              const std::vector<int64_t>& all_starts, const at::Tensor& on_card, const DocumentRun& run)
      : first_row(all_starts[run.first]), rows(all_starts[run.end] - first_row) {
    const int64_t heads = q_NHD.size(1);
    q = part(q_NHD).unsqueeze(0);
    k = heads_of_queries(part(k_NKD), heads);
    v = heads_of_queries(part(v_NKD), heads);
    starts =
        on_card.narrow(0, static_cast<int64_t>(run.first), static_cast<int64_t>(run.end - run.first) + 1);
    if (first_row > 0) starts = starts - first_row;
  }

  at::Tensor part(const at::Tensor& x_NHD) const { return x_NHD.narrow(0, first_row, rows); }
};

/// Saves the offsets of all documents, the state of a generator, and each run's log-sum-exp.
AttentionOut efficient_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const std::vector<int64_t>& starts, const at::Tensor& on_card,
                               const AttentionChoice& choice) {
  AttentionOut made{{}, {on_card, {}, {}}, choice};
  const std::vector<DocumentRun> runs = runs_of(starts);
  if (runs.size() > 1) made.out_NHD = at::empty(q_NHD.sizes(), q_NHD.options());
  for (const DocumentRun& run : runs) {
    const RunOperands part(q_NHD, k_NKD, v_NKD, starts, on_card, run);
    const auto [out, log_sum_exp, seed, offset, longest_q, longest_k] = at::_efficient_attention_forward(
        part.q, part.k, part.v, /*bias=*/{}, part.starts, part.starts, run.longest, run.longest, 0.0,
        kCausalFromTopLeft, /*compute_log_sumexp=*/true);
    if (runs.size() > 1) {
      part.part(made.out_NHD).copy_(out.squeeze(0));
    } else {
      made.out_NHD = out.squeeze(0);
    }
    made.saved[1] = seed;
    made.saved[2] = offset;
    made.saved.push_back(log_sum_exp);
  }
  return made;
}

void efficient_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward,
                        const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                        const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  // Several splits of the keys add to dQ as they are ready.
  const auto splits = forward.choice.in_fixed_order ? std::optional<int64_t>(1) : std::nullopt;
  const auto sum_groups = [](const at::Tensor& to_NKD, const at::Tensor& gradient_1NHD) {
    const at::Tensor gradient_NHD = gradient_1NHD.squeeze(0);
    if (to_NKD.size(1) == gradient_NHD.size(1)) {
      to_NKD.copy_(gradient_NHD);
    } else {
      to_NKD.copy_(gradient_NHD.unflatten(1, {to_NKD.size(1), -1}).sum(2));
    }
  };
  size_t next = 3;
  for (const DocumentRun& run : runs_of(starts)) {
    const RunOperands part(q_NHD, k_NKD, v_NKD, starts, forward.saved[0], run);
    const auto [d_q, d_k, d_v, d_bias] = at::_efficient_attention_backward(
        part.part(d_out_NHD).unsqueeze(0), part.q, part.k, part.v, /*bias=*/{},
        part.part(forward.out_NHD).unsqueeze(0), part.starts, part.starts, run.longest, run.longest,
        forward.saved[next++], 0.0, forward.saved[1], forward.saved[2], kCausalFromTopLeft,
        /*bias_requires_grad=*/false, /*scale=*/{}, splits);
    if (d_q_NHD.defined()) part.part(d_q_NHD).copy_(d_q.squeeze(0));
    if (d_k_NKD.defined()) sum_groups(part.part(d_k_NKD), d_k);
    sum_groups(part.part(d_v_NKD), d_v);
  }
}

}  // namespace

at::Tensor starts_on(const at::Tensor& q_NHD, const std::vector<int64_t>& starts, const at::Tensor& given) {
  return given.defined() ? given : at::tensor(starts, at::kLong).to(at::kInt).to(q_NHD.device());
}

AttentionOut flash_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                           const std::vector<int64_t>& starts, const AttentionOptions& options) {
  const at::Tensor on_card = starts_on(q_NHD, starts, options.starts_on_card);
  if (q_NHD.scalar_type() == at::kFloat)
    return efficient_forward(q_NHD, k_NKD, v_NKD, starts, on_card, options.choice);
  const int64_t longest = longest_document(starts);
  const auto [out, log_sum_exp, rng_state, unused, debug] = at::_flash_attention_forward(
      q_NHD, k_NKD, v_NKD, on_card, on_card, longest, longest, 0.0, /*is_causal=*/true,
      /*return_debug_mask=*/false);
  return {out, {log_sum_exp, on_card, rng_state, unused}, options.choice};
}

AttentionOut flash_forward_made(const at::Tensor& out_NHD, const at::Tensor& log_sum_HN,
                                const at::Tensor& starts_on_card, const AttentionChoice& choice) {
  // The state of a generator that a backward without dropout does not read.
  const at::TensorOptions state = out_NHD.options().dtype(at::kUInt64);
  return {out_NHD, {log_sum_HN, starts_on_card, at::empty({2}, state), at::empty({}, state)}, choice};
}

void flash_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                    const at::Tensor& v_NKD, const AttentionOut& forward, const std::vector<int64_t>& starts,
                    const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  if (q_NHD.scalar_type() == at::kFloat) {
    efficient_backward(d_out_NHD, q_NHD, k_NKD, v_NKD, forward, starts, d_q_NHD, d_k_NKD, d_v_NKD);
    return;
  }
  const int64_t longest = longest_document(starts);
  const FixedOrder order(forward.choice.in_fixed_order);
  const auto [d_q, d_k, d_v] = at::_flash_attention_backward(
      d_out_NHD, q_NHD, k_NKD, v_NKD, forward.out_NHD, forward.saved[0], forward.saved[1], forward.saved[1],
      longest, longest, 0.0, /*is_causal=*/true, forward.saved[2], forward.saved[3]);
  if (d_q_NHD.defined()) d_q_NHD.copy_(d_q);
  if (d_k_NKD.defined()) d_k_NKD.copy_(d_k);
  d_v_NKD.copy_(d_v);
}

}  // namespace satune
