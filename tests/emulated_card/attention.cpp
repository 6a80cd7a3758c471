// LibTorch's flash and memory-efficient attention over packed documents and the graphs of cuDNN, by their
// definition in fp32. They refuse what the real ones refuse of what satune asks.
#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "model/ops/attention_cudnn.h"
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

/// d_scores K, added over blocks of keys: in their order, or in one that nobody knows, as cards do.
at::Tensor summed_over_keys(const at::Tensor& d_scores, const at::Tensor& k, bool in_order) {
  constexpr int64_t kBlock = 4;
  std::vector<int64_t> blocks((k.size(1) + kBlock - 1) / kBlock);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (!in_order) std::shuffle(blocks.begin(), blocks.end(), std::random_device{});
  at::Tensor sum = at::zeros({d_scores.size(0), d_scores.size(1), k.size(2)}, at::kFloat);
  for (const int64_t block : blocks) {
    const int64_t first = block * kBlock, count = std::min(kBlock, k.size(1) - first);
    sum += at::matmul(d_scores.narrow(2, first, count), k.narrow(1, first, count));
  }
  return sum;
}

void backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const at::Tensor& out, const at::Tensor& log_sum, double scale, bool in_order,
              const at::Tensor& d_q, const at::Tensor& d_k, const at::Tensor& d_v) {
  const int64_t repeats = q.size(1) / k.size(1);
  const at::Tensor of_q = heads_first(q, 1), of_k = heads_first(k, repeats), of_v = heads_first(v, repeats);
  const at::Tensor of_d = heads_first(d_out, 1), of_out = heads_first(out, 1);
  const at::Tensor weights =
      at::exp(at::matmul(of_q, of_k.transpose(1, 2)) * scale + causal(q.size(0)) - log_sum.unsqueeze(-1));
  const at::Tensor d_weights = at::matmul(of_d, of_v.transpose(1, 2));
  const at::Tensor d_scores = weights * (d_weights - (of_d * of_out).sum(-1, true)) * scale;
  d_q.copy_(summed_over_keys(d_scores, of_k, in_order).transpose(0, 1));
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
  const bool in_order = at::globalContext().deterministicAlgorithms();
  const int64_t blocks = (starts.numel() - 1) * q.size(1),
                sums_of_dq = in_order ? (131 + blocks) / blocks : 1;
  const int64_t padded = q.size(0) + 128 * (starts.numel() - 1), step = q.size(2) <= 128 ? 32 : 64,
                width = (q.size(2) + step - 1) / step * step;
  [[maybe_unused]] const at::Tensor taken[] = {at::empty({sums_of_dq, padded, q.size(1), width}, wide),
                                               at::empty({q.size(1), padded}, wide),
                                               q.size(1) == k.size(1) ? at::Tensor() : at::empty_like(q),
                                               q.size(1) == k.size(1) ? at::Tensor() : at::empty_like(q)};
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, d_out = on_host(d_out), q = on_host(q), k = on_host(k), v = on_host(v), out = on_host(out),
         sums = on_host(log_sum), starts = on_host(starts), d_q = on_host(d_q), d_k = on_host(d_k),
         d_v = on_host(d_v), longest = longest.expect_int()] {
    for_documents(starts, longest, q.size(0), [&](int64_t first, int64_t rows) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, rows); };
      backward(part(d_out), part(q), part(k), part(v), part(out), sums.narrow(1, first, rows), by, in_order,
               part(d_q), part(d_k), part(d_v));
    });
  });
  return gradients;
}

using EfficientForward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt>;
using EfficientGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

void check_efficient(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const OptionalTensor& starts, double dropout, int64_t mask) {
  TORCH_CHECK(q.dim() == 4 && q.size(0) == 1 && q.sizes() == k.sizes() && k.sizes() == v.sizes(),
              "memory-efficient attention: [1, rows, heads, head_dim] of as many heads each");
  TORCH_CHECK(q.scalar_type() == at::kFloat && q.size(3) % 4 == 0 && q.stride(3) == 1 && k.stride(3) == 1 &&
                  v.stride(3) == 1,
              "memory-efficient attention: only what satune asks for is emulated");
  TORCH_CHECK(dropout == 0 && mask == 1, "memory-efficient attention: causal, without dropout");
  check_starts(starts);
}

EfficientForward efficient_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const OptionalTensor& bias, const OptionalTensor& starts,
                                   const OptionalTensor& starts_k, OptionalInt longest, OptionalInt longest_k,
                                   double dropout, int64_t mask, bool with_sums, std::optional<double> scale,
                                   const OptionalTensor&, std::optional<int64_t>) {
  check_efficient(q, k, v, starts, dropout, mask);
  TORCH_CHECK(!bias && starts_k && longest && longest_k && with_sums, "only what satune asks for");
  const int64_t documents = starts->numel() - 1, most = longest->expect_int();
  const at::Tensor out = at::empty(q.sizes(), q.options()),
                   log_sum = at::empty({documents, q.size(2), (most + 31) / 32 * 32}, q.options());
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, q = on_host(q)[0], k = on_host(k)[0], v = on_host(v)[0], starts = on_host(*starts),
         to = on_host(out)[0], sums = on_host(log_sum)] {
    int64_t document = 0;
    for_documents(starts, most, q.size(0), [&](int64_t first, int64_t rows) {
      while (starts.const_data_ptr<int>()[document] != first) ++document;
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, rows); };
      forward(part(q), part(k), part(v), by, part(to), sums[document].narrow(1, 0, rows));
    });
  });
  const at::Tensor seed = at::empty({}, q.options().dtype(at::kLong));
  return {out, log_sum, seed, at::empty_like(seed), *longest, *longest_k};
}

EfficientGradients efficient_backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& v, const OptionalTensor& bias, const at::Tensor& out,
                                      const OptionalTensor& starts, const OptionalTensor&,
                                      c10::SymInt longest, c10::SymInt, const at::Tensor& log_sum,
                                      double dropout, const at::Tensor&, const at::Tensor&, int64_t mask,
                                      bool of_bias, std::optional<double> scale,
                                      std::optional<int64_t> splits, std::optional<int64_t>, bool) {
  check_efficient(q, k, v, starts, dropout, mask);
  TORCH_CHECK(!bias && !of_bias, "only what satune asks for");
  const auto plain = [](const at::Tensor& like) { return at::empty(like.sizes(), like.options()); };
  const at::Tensor d_q = plain(q), d_k = plain(k), d_v = plain(v);
  // dO * O; sums of dQ in blocks of 64 rows and columns, for every document as for the longest.
  const int64_t blocks = (longest.expect_int() + 63) / 64 * ((q.size(3) + 63) / 64);
  [[maybe_unused]] const at::Tensor taken[] = {
      plain(q), at::empty({starts->numel() - 1, q.size(2), blocks, 64 * std::min<int64_t>(64, q.size(3)) + 4},
                          q.options())};
  const double by = scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
  queue([=, d_out = on_host(d_out)[0], q = on_host(q)[0], k = on_host(k)[0], v = on_host(v)[0],
         out = on_host(out)[0], sums = on_host(log_sum), starts = on_host(*starts), d_q = on_host(d_q)[0],
         d_k = on_host(d_k)[0], d_v = on_host(d_v)[0], longest = longest.expect_int(),
         in_order = splits == 1] {
    int64_t document = 0;
    for_documents(starts, longest, q.size(0), [&](int64_t first, int64_t rows) {
      while (starts.const_data_ptr<int>()[document] != first) ++document;
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, rows); };
      backward(part(d_out), part(q), part(k), part(v), part(out), sums[document].narrow(1, 0, rows), by,
               in_order, part(d_q), part(d_k), part(d_v));
    });
  });
  return {d_q, d_k, d_v, at::Tensor()};
}

/// A graph of cuDNN: what it would do with these addresses.
class EmulatedGraph final : public CudnnGraph {
 public:
  explicit EmulatedGraph(const CudnnShape& shape) : shape_(shape) {}

  int64_t workspace_bytes() const override { return shape_.backward ? cudnn_workspace_bytes(shape_) : 256; }

  void run(const CudnnAddresses& at) override {
    queue([shape = shape_, at, bytes = workspace_bytes()] {
      check_alignment(shape, at);
      std::memset(at.workspace, 0xff, static_cast<size_t>(bytes));
      int64_t tokens = 0;
      const CudnnDocuments& documents = shape.documents;
      for (int64_t document = 0; document < documents.count; ++document) {
        const int64_t length = documents.packed ? at.lengths[document] : documents.length;
        tokens += length;
        if (length < 0 || length > documents.length ||
            (documents.packed && shape.backward && tokens > documents.tokens))
          throw std::runtime_error("cuDNN attention: documents larger than its graph");
        if (length > 0) run_document(shape, at, document, length);
      }
    });
  }

 private:
  /// To 16 bytes, as the frontend promises cuDNN.
  static void check_alignment(const CudnnShape& shape, const CudnnAddresses& at) {
    const auto check = [](const void* address) {
      if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
        throw std::runtime_error("cuDNN attention: an address that is no multiple of 16");
    };
    for (const void* address : at.tensors) check(address);
    if (shape.documents.packed) check(at.lengths);
    for (const void* address : at.offsets) check(address);
    check(at.workspace);
  }

  static void run_document(const CudnnShape& shape, const CudnnAddresses& at, int64_t document,
                           int64_t length) {
    const auto options = at::TensorOptions().dtype(shape.bf16 ? at::kBFloat16 : at::kHalf);
    const auto rows = [&](CudnnTensor name, int64_t heads) {
      const int64_t row = shape.row[name], from = shape.documents.packed
                                                      ? at.offsets[name][document]
                                                      : document * shape.documents.length * row;
      return at::from_blob(static_cast<uint16_t*>(at.tensors[name]) + from, {length, heads, shape.head_dim},
                           {row, shape.head_dim, 1}, options);
    };
    const int64_t H = shape.heads, K = shape.kv_heads;
    float* sums =
        static_cast<float*>(at.tensors[kLogSum]) +
        (shape.documents.packed ? at.offsets[kLogSum][document] : document * H * shape.documents.length);
    const at::Tensor log_sum = at::from_blob(
        sums, {H, length},
        shape.documents.packed ? at::IntArrayRef({1, H}) : at::IntArrayRef({shape.documents.length, 1}),
        at::kFloat);
    const double scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
    const at::Tensor q = rows(kQuery, H), k = rows(kKey, K), v = rows(kValue, K), out = rows(kOut, H);
    if (shape.backward) {
      backward(rows(kDOut, H), q, k, v, out, log_sum, scale, /*in_order=*/false, rows(kDQuery, H),
               rows(kDKey, K), rows(kDValue, K));
    } else {
      forward(q, k, v, scale, out, log_sum);
    }
  }

  CudnnShape shape_;
};

}  // namespace

void add_attention(torch::Library& library) {
  library.impl("_flash_attention_forward", TORCH_FN(flash_forward));
  library.impl("_flash_attention_backward", TORCH_FN(flash_backward));
  library.impl("_efficient_attention_forward", TORCH_FN(efficient_forward));
  library.impl("_efficient_attention_backward", TORCH_FN(efficient_backward));
}

}  // namespace satune::emulated_card

namespace satune {

/// In the place of the one in satune's library.
std::unique_ptr<CudnnGraph> make_cudnn_graph(const CudnnShape& shape, const CudnnCard&) {
  return std::make_unique<emulated_card::EmulatedGraph>(shape);
}

}  // namespace satune
