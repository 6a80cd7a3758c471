// Flash attention over packed documents and cuDNN's over batches of equal ones, by their definition in fp32.
// Both refuse what the real ones refuse of what satune asks.
#include <ATen/ATen.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "tests/emulated_card/aten.h"

namespace satune::emulated_card {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using OptionalInt = std::optional<c10::SymInt>;

struct Operands {
  at::Tensor q, k, v;  // [heads, T, D] in fp32, of one document; k and v repeated for their query heads
};

/// x [T, heads, D] of one document.
at::Tensor heads_first(const at::Tensor& x, int64_t repeats) {
  return x.to(at::kFloat).transpose(0, 1).repeat_interleave(repeats, 0);
}

at::Tensor causal(int64_t length) {
  return at::full({length, length}, -INFINITY, at::kFloat).triu(1);
}

/// Of one document: writes out [T, H, D] and log_sum [H, T].
void forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
             const at::Tensor& out, const at::Tensor& log_sum) {
  const int64_t repeats = q.size(1) / k.size(1);
  const at::Tensor scores =
      at::matmul(heads_first(q, 1), heads_first(k, repeats).transpose(1, 2)) * scale + causal(q.size(0));
  log_sum.copy_(at::logsumexp(scores, -1));
  out.copy_(at::matmul(at::softmax(scores, -1), heads_first(v, repeats)).transpose(0, 1));
}

at::Tensor summed(const at::Tensor& gradient_HTD, int64_t repeats) {
  return gradient_HTD.unflatten(0, {-1, repeats}).sum(1).transpose(0, 1);
}

void backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const at::Tensor& out, const at::Tensor& log_sum, double scale, const at::Tensor& d_q,
              const at::Tensor& d_k, const at::Tensor& d_v) {
  const int64_t repeats = q.size(1) / k.size(1);
  const at::Tensor of_q = heads_first(q, 1), of_k = heads_first(k, repeats), of_v = heads_first(v, repeats);
  const at::Tensor of_d = heads_first(d_out, 1), of_out = heads_first(out, 1);
  const at::Tensor weights =
      at::exp(at::matmul(of_q, of_k.transpose(1, 2)) * scale + causal(q.size(0)) - log_sum.unsqueeze(-1));
  const at::Tensor d_weights = at::matmul(of_d, of_v.transpose(1, 2));
  const at::Tensor d_scores = weights * (d_weights - (of_d * of_out).sum(-1, true)) * scale;
  d_q.copy_(at::matmul(d_scores, of_k).transpose(0, 1));
  d_k.copy_(summed(at::matmul(d_scores.transpose(1, 2), of_q), repeats));
  d_v.copy_(summed(at::matmul(weights.transpose(1, 2), of_d), repeats));
}

void check_heads(const char* who, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 int64_t heads_dim, double dropout, bool is_causal) {
  TORCH_CHECK(at::isReducedFloatingType(q.scalar_type()) && q.scalar_type() == k.scalar_type() &&
                  q.scalar_type() == v.scalar_type(),
              who, " only supports fp16 and bf16 data type");
  TORCH_CHECK(q.size(-1) % 8 == 0 && q.size(-1) <= 256, who, ": heads of ", q.size(-1));
  TORCH_CHECK(q.stride(-1) == 1 && k.stride(-1) == 1 && v.stride(-1) == 1, who,
              ": Input tensor must have contiguous last dimension");
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(heads_dim) % k.size(heads_dim) == 0, who, ": shapes");
  TORCH_CHECK(dropout == 0 && is_causal, who, ": only what satune asks for is emulated");
}

/// Calls f(first row, rows) of each document, when the numbers of `starts` are there.
void for_documents(const at::Tensor& starts, int64_t longest, int64_t rows,
                   const std::function<void(int64_t, int64_t)>& f) {
  const int* values = starts.const_data_ptr<int>();
  for (int64_t i = 0; i + 1 < starts.numel(); ++i) {
    const int64_t length = values[i + 1] - values[i];
    if (values[i] < 0 || length < 0 || length > longest || values[i + 1] > rows)
      throw std::runtime_error("flash attention: documents out of range");
    if (length > 0) f(values[i], length);
  }
}

void check_starts(const OptionalTensor& starts) {
  TORCH_CHECK(starts && starts->is_cuda() && starts->scalar_type() == at::kInt && starts->is_contiguous(),
              "flash attention: cum_seq must be int32 on the card");
}

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Forward flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const OptionalTensor& starts, const OptionalTensor& starts_k, c10::SymInt longest,
                      c10::SymInt, double dropout, bool is_causal, bool, std::optional<double> scale,
                      OptionalInt, OptionalInt, const OptionalTensor&, const OptionalTensor&) {
  check_heads("FlashAttention", q, k, v, 1, dropout, is_causal);
  check_starts(starts);
  check_starts(starts_k);
  const at::Tensor out = at::empty_like(q),
                   log_sum = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, q = on_host(q), k = on_host(k), v = on_host(v), starts = on_host(*starts), to = on_host(out),
         sums = on_host(log_sum), longest = longest.expect_int()] {
    for_documents(starts, longest, q.size(0), [&](int64_t first, int64_t rows) {
      forward(q.narrow(0, first, rows), k.narrow(0, first, rows), v.narrow(0, first, rows), by,
              to.narrow(0, first, rows), sums.narrow(1, first, rows));
    });
  });
  const at::Tensor seed = at::empty({2}, q.options().dtype(at::kUInt64));
  return {out, log_sum, seed, at::empty({}, seed.options()), at::empty({0}, q.options())};
}

Gradients flash_backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k,
                         const at::Tensor& v, const at::Tensor& out, const at::Tensor& log_sum,
                         const at::Tensor& starts, const at::Tensor&, c10::SymInt longest, c10::SymInt,
                         double dropout, bool is_causal, const at::Tensor&, const at::Tensor&,
                         std::optional<double> scale, OptionalInt, OptionalInt) {
  check_heads("FlashAttention", q, k, v, 1, dropout, is_causal);
  check_starts(starts);
  const Gradients gradients(at::empty_like(q), at::empty_like(k), at::empty_like(v));
  const auto& [d_q, d_k, d_v] = gradients;
  // What the real one takes while it runs: sums of dQ, sum(dO * O), dK and dV of all query heads.
  const auto wide = q.options().dtype(at::kFloat);
  const int64_t padded = q.size(0) + 128 * (starts.numel() - 1), step = q.size(2) <= 128 ? 32 : 64,
                width = (q.size(2) + step - 1) / step * step;
  [[maybe_unused]] const at::Tensor taken[] = {at::empty({padded, q.size(1), width}, wide),
                                               at::empty({q.size(1), padded}, wide),
                                               q.size(1) == k.size(1) ? at::Tensor() : at::empty_like(q),
                                               q.size(1) == k.size(1) ? at::Tensor() : at::empty_like(q)};
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, d_out = on_host(d_out), q = on_host(q), k = on_host(k), v = on_host(v), out = on_host(out),
         sums = on_host(log_sum), starts = on_host(starts), d_q = on_host(d_q), d_k = on_host(d_k),
         d_v = on_host(d_v), longest = longest.expect_int()] {
    for_documents(starts, longest, q.size(0), [&](int64_t first, int64_t rows) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, rows); };
      backward(part(d_out), part(q), part(k), part(v), part(out), sums.narrow(1, first, rows), by, part(d_q),
               part(d_k), part(d_v));
    });
  });
  return gradients;
}

using CudnnForward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt,
                                at::Tensor, at::Tensor, at::Tensor>;

CudnnForward cudnn_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const OptionalTensor& bias, const OptionalTensor& starts, const OptionalTensor&,
                           c10::SymInt longest_q, c10::SymInt longest_k, bool, double dropout, bool is_causal,
                           bool, std::optional<double> scale) {
  check_heads("cuDNN attention", q, k, v, 1, dropout, is_causal);
  TORCH_CHECK(!bias && !starts && q.dim() == 4, "cuDNN attention: only what satune asks for is emulated");
  const at::Tensor out = at::empty_like(q);
  const at::Tensor log_sum = at::empty({q.size(0), q.size(1), q.size(2), 1}, q.options().dtype(at::kFloat));
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, q = on_host(q), k = on_host(k), v = on_host(v), to = on_host(out), sums = on_host(log_sum)] {
    for (int64_t i = 0; i < q.size(0); ++i) {
      const auto rows = [i](const at::Tensor& x) { return x[i].transpose(0, 1); };
      forward(rows(q), rows(k), rows(v), by, rows(to), sums[i].squeeze(-1));
    }
  });
  const at::Tensor seed = at::empty({}, q.options().dtype(at::kLong));
  return {out, log_sum, {}, {}, longest_q, longest_k, seed, at::empty_like(seed), {}};
}

Gradients cudnn_backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k,
                         const at::Tensor& v, const at::Tensor& out, const at::Tensor& log_sum,
                         const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, c10::SymInt, c10::SymInt, double dropout, bool is_causal,
                         std::optional<double> scale) {
  check_heads("cuDNN attention", q, k, v, 1, dropout, is_causal);
  const Gradients gradients(at::empty_like(q), at::empty_like(k), at::empty_like(v));
  const auto& [d_q, d_k, d_v] = gradients;
  // Its workspace: sums of dQ and sum(dO * O).
  [[maybe_unused]] const at::Tensor taken[] = {at::empty(q.sizes(), q.options().dtype(at::kFloat)),
                                               at::empty_like(log_sum)};
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, d_out = on_host(d_out), q = on_host(q), k = on_host(k), v = on_host(v), out = on_host(out),
         sums = on_host(log_sum), d_q = on_host(d_q), d_k = on_host(d_k), d_v = on_host(d_v)] {
    for (int64_t i = 0; i < q.size(0); ++i) {
      const auto rows = [i](const at::Tensor& x) { return x[i].transpose(0, 1); };
      backward(rows(d_out), rows(q), rows(k), rows(v), rows(out), sums[i].squeeze(-1), by, rows(d_q),
               rows(d_k), rows(d_v));
    }
  });
  return gradients;
}

}  // namespace

void add_attention(torch::Library& library) {
  library.impl("_flash_attention_forward", TORCH_FN(flash_forward));
  library.impl("_flash_attention_backward", TORCH_FN(flash_backward));
  library.impl("_cudnn_attention_forward", TORCH_FN(cudnn_forward));
  library.impl("_cudnn_attention_backward", TORCH_FN(cudnn_backward));
}

}  // namespace satune::emulated_card
