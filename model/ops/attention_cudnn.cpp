#include "model/ops/attention_cudnn.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>

#include "model/ops/attention_devices.h"
#include "model/ops/cuda_stream.h"

namespace satune {
namespace {

constexpr int64_t kShortestRounded = 64;  // a kernel's tile has as many rows

int64_t rounded_up(int64_t size) {
  return std::max(kShortestRounded, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(size))));
}

/// To a multiple of an eighth of its power of two: what it costs is memory.
int64_t rounded_finely(int64_t size) {
  const int64_t step = std::max<int64_t>(kShortestRounded, rounded_up(size) / 8);
  return (size + step - 1) / step * step;
}

/// Elements from a row of x [N, heads, D] to the next; of one row LibTorch's stride may be any.
int64_t row_of(const at::Tensor& x) {
  TORCH_CHECK(x.stride(2) == 1 && x.stride(1) == x.size(2), "attention takes heads side by side");
  const int64_t row = x.size(0) < 2 ? x.size(1) * x.size(2) : x.stride(0);
  TORCH_CHECK(row % 8 == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0,
              "cuDNN takes rows of multiples of 16 bytes");
  return row;
}

CudnnShape shape_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const std::vector<int64_t>& starts, int64_t full_row) {
  TORCH_CHECK(at::isReducedFloatingType(q.scalar_type()) && k.scalar_type() == q.scalar_type() &&
                  v.scalar_type() == q.scalar_type(),
              "cuDNN attends in bf16 and fp16");
  TORCH_CHECK(k.sizes() == v.sizes(), "cuDNN takes as many heads of keys as of values");
  CudnnShape shape;
  shape.documents = cudnn_documents(starts, full_row);
  // Of others the scratch grows with count * length, whatever `tokens` says.
  TORCH_CHECK(q.size(2) % (shape.documents.packed ? 16 : 8) == 0, "cuDNN takes heads of a multiple of 16");
  shape.bf16 = q.scalar_type() == at::kBFloat16;
  shape.heads = q.size(1);
  shape.kv_heads = k.size(1);
  shape.head_dim = q.size(2);
  return shape;
}

}  // namespace

CudnnDocuments cudnn_documents(const std::vector<int64_t>& starts, int64_t full_row) {
  CudnnDocuments documents;
  documents.count = static_cast<int64_t>(starts.size()) - 1;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t length = starts[i + 1] - starts[i];
    documents.packed = documents.packed || length != full_row;
    documents.length = std::max(documents.length, length);
  }
  if (!documents.packed) return documents;
  documents.count = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(documents.count)));
  documents.length = rounded_up(documents.length);
  documents.tokens = rounded_finely(starts.back());
  return documents;
}

void CudnnAttention::run(CudnnShape shape, const Tensors& tensors, int64_t documents,
                         const at::Tensor& starts_on_card) {
  CudnnAddresses at;
  for (int i = 0; i < kCudnnTensors; ++i) {
    const at::Tensor& tensor = tensors[i];
    if (!tensor.defined()) continue;
    shape.row[i] = i == kLogSum ? shape.heads : row_of(tensor);
    at.tensors[i] = tensor.mutable_data_ptr();
  }
  const at::Tensor& q = tensors[kQuery];
  at::Tensor offsets, lengths;  // until the kernel is queued
  if (shape.documents.packed) {
    const int64_t slots = shape.documents.count, pitch = cuda::offsets_pitch(slots);
    cuda::RowStrides rows;
    rows.count = kCudnnTensors;
    std::copy(shape.row.begin(), shape.row.end(), rows.elements);
    offsets = at::empty({kCudnnTensors, pitch}, q.options().dtype(at::kLong));
    lengths = at::empty({slots}, q.options().dtype(at::kInt));
    at.lengths = lengths.mutable_data_ptr<int>();
    for (int i = 0; i < kCudnnTensors; ++i) at.offsets[i] = offsets.mutable_data_ptr<int64_t>() + i * pitch;
    cuda::document_offsets(starts_on_card.const_data_ptr<int>(), documents, slots, rows, at.offsets[0],
                           at.lengths, cuda::current_stream(q));
  }
  if (!shape.backward) shape.documents.tokens = 0;
  std::unique_ptr<CudnnGraph>& graph = graphs_[shape];
  if (graph == nullptr)
    graph =
        make_cudnn_graph(shape, {cuda::compute_capability(q.device()), cuda::multiprocessors(q.device())});
  const at::Tensor workspace = at::empty({graph->workspace_bytes()}, q.options().dtype(at::kByte));
  at.workspace = workspace.mutable_data_ptr();
  graph->run(at);
}

AttentionOut CudnnAttention::forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                                     const at::Tensor& v_NKD, const std::vector<int64_t>& starts,
                                     const AttentionOptions& options) {
  const CudnnShape shape = shape_of(q_NHD, k_NKD, v_NKD, starts, options.choice.full_row);
  const int64_t documents = static_cast<int64_t>(starts.size()) - 1, N = q_NHD.size(0), H = shape.heads;
  const at::TensorOptions wide = q_NHD.options().dtype(at::kFloat);
  const bool for_flash = options.choice.in_fixed_order;
  at::Tensor on_card;
  if (shape.documents.packed || for_flash) on_card = starts_on(q_NHD, starts, options.starts_on_card);
  const at::Tensor out_NHD = at::empty(q_NHD.sizes(), q_NHD.options()),
                   log_sum = shape.documents.packed ? at::empty({N, H}, wide)
                                                    : at::empty({documents, H, N / documents}, wide);
  run(shape, {q_NHD, k_NKD, v_NKD, out_NHD, log_sum}, documents, on_card);
  if (!for_flash) return {out_NHD, {log_sum, on_card}, options.choice};
  const at::Tensor log_sum_HN =
      (shape.documents.packed ? log_sum.t() : log_sum.transpose(0, 1)).reshape({H, N});
  return flash_forward_made(out_NHD, log_sum_HN.contiguous(), on_card, options.choice);
}

void CudnnAttention::backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                              const at::Tensor& v_NKD, const AttentionOut& forward,
                              const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                              const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  CudnnShape shape = shape_of(q_NHD, k_NKD, v_NKD, starts, forward.choice.full_row);
  shape.backward = true;
  const auto or_scratch = [](const at::Tensor& gradient, const at::Tensor& like) {
    return gradient.defined() ? gradient : at::empty(like.sizes(), like.options());
  };
  const bool apart = shape.documents.packed && shape.heads != shape.kv_heads;
  const auto own_if_strided = [&](const at::Tensor& gradient) {
    return apart && !gradient.is_contiguous() ? at::empty(gradient.sizes(), gradient.options()) : gradient;
  };
  const at::Tensor d_q = or_scratch(d_q_NHD, q_NHD), d_k = own_if_strided(or_scratch(d_k_NKD, k_NKD)),
                   d_v = own_if_strided(d_v_NKD);
  run(shape, {q_NHD, k_NKD, v_NKD, forward.out_NHD, forward.saved[0], d_out_NHD.contiguous(), d_q, d_k, d_v},
      static_cast<int64_t>(starts.size()) - 1, forward.saved[1]);
  if (d_k_NKD.defined() && !d_k_NKD.is_same(d_k)) d_k_NKD.copy_(d_k);
  if (!d_v_NKD.is_same(d_v)) d_v_NKD.copy_(d_v);
}

int64_t cudnn_workspace_bytes(const CudnnShape& shape) {
  const auto& [packed, count, length, tokens] = shape.documents;
  const int64_t rows = packed ? tokens : count * length, queries = rows * shape.heads * shape.head_dim,
                grouped = shape.heads != shape.kv_heads ? 1 : 0;
  // Sums of dO * O; dK and dV of all query heads; sums of dQ.
  return 4 * rows * shape.heads + grouped * (packed ? 8 : 4) * queries +
         4 * (packed ? rows * shape.row[kDQuery] : queries);
}

}  // namespace satune
