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

/// Elements from a row of x [N, heads, D] to the next.
int64_t row_of(const at::Tensor& x) {
  TORCH_CHECK(x.stride(2) == 1 && x.stride(1) == x.size(2), "attention takes heads side by side");
  TORCH_CHECK(x.size(2) % 8 == 0 && (x.size(0) < 2 || x.stride(0) % 8 == 0) &&
                  reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0,
              "cuDNN takes heads and rows of multiples of 16 bytes");
  return x.size(0) < 2 ? x.size(1) * x.size(2) : x.stride(0);
}

CudnnShape shape_of(const at::Tensor& q, const at::Tensor& k, const std::vector<int64_t>& starts,
                    int64_t full_row) {
  CudnnShape shape = cudnn_documents(starts, full_row);
  shape.bf16 = q.scalar_type() == at::kBFloat16;
  shape.heads = q.size(1);
  shape.kv_heads = k.size(1);
  shape.head_dim = q.size(2);
  return shape;
}

}  // namespace

CudnnShape cudnn_documents(const std::vector<int64_t>& starts, int64_t full_row) {
  CudnnShape shape;
  shape.documents = static_cast<int64_t>(starts.size()) - 1;
  shape.tokens = starts.back();
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t length = starts[i + 1] - starts[i];
    shape.packed = shape.packed || length != full_row;
    shape.length = std::max(shape.length, length);
  }
  if (!shape.packed) return shape;
  shape.documents = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(shape.documents)));
  shape.length = rounded_up(shape.length);
  shape.tokens = rounded_finely(shape.tokens);
  return shape;
}

void CudnnAttention::run(CudnnShape shape, const Tensors& tensors, int64_t documents,
                         const at::Tensor& starts_on_card) {
  cuda::RowStrides rows;
  CudnnAddresses at;
  for (int i = 0; i < kCudnnTensors; ++i) {
    const at::Tensor& tensor = tensors[i];
    if (!tensor.defined()) continue;
    shape.row[i] = i == kLogSum ? shape.heads : row_of(tensor);
    at.tensors[i] = tensor.mutable_data_ptr();
  }
  const at::Tensor& q = tensors[kQuery];
  at::Tensor offsets, lengths;
  if (shape.packed) {
    rows.count = kCudnnTensors;
    std::copy(shape.row.begin(), shape.row.end(), rows.elements);
    offsets = at::empty({kCudnnTensors, shape.documents + 1}, q.options().dtype(at::kLong));
    lengths = at::empty({shape.documents}, q.options().dtype(at::kInt));
    at.lengths = lengths.mutable_data_ptr<int>();
    for (int i = 0; i < kCudnnTensors; ++i)
      at.offsets[i] = offsets.mutable_data_ptr<int64_t>() + i * (shape.documents + 1);
    cuda::document_offsets(starts_on_card.const_data_ptr<int>(), documents, shape.documents, rows,
                           at.offsets[0], at.lengths, cuda::current_stream(q));
  }
  std::unique_ptr<CudnnGraph>& graph = graphs_[shape];
  if (graph == nullptr)
    graph = make_cudnn_graph(shape, {cuda::compute_capability(q), cuda::multiprocessors(q)});
  const at::Tensor workspace = at::empty({graph->workspace_bytes()}, q.options().dtype(at::kByte));
  at.workspace = workspace.mutable_data_ptr();
  graph->run(at);
}

AttentionOut CudnnAttention::forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                                     const at::Tensor& v_NKD, const std::vector<int64_t>& starts,
                                     const AttentionOptions& options) {
  const CudnnShape shape = shape_of(q_NHD, k_NKD, starts, options.choice.full_row);
  const auto documents = static_cast<int64_t>(starts.size()) - 1;
  const at::TensorOptions wide = q_NHD.options().dtype(at::kFloat);
  AttentionOut made{at::empty(q_NHD.sizes(), q_NHD.options()), {}, options.choice};
  made.saved = {shape.packed ? at::empty({q_NHD.size(0), shape.heads}, wide)
                             : at::empty({documents, shape.heads, shape.length}, wide)};
  if (shape.packed) made.saved.push_back(starts_on(q_NHD, starts, options.starts_on_card));
  run(shape, {q_NHD, k_NKD, v_NKD, made.out_NHD, made.saved[0]}, documents, made.saved.back());
  return made;
}

void CudnnAttention::backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                              const at::Tensor& v_NKD, const AttentionOut& forward,
                              const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                              const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  CudnnShape shape = shape_of(q_NHD, k_NKD, starts, forward.choice.full_row);
  shape.backward = true;
  shape.in_fixed_order = forward.choice.in_fixed_order;
  const auto wanted = [](const at::Tensor& gradient, const at::Tensor& like) {
    return gradient.defined() ? gradient : at::empty(like.sizes(), like.options());
  };
  const bool apart = shape.packed && shape.heads != shape.kv_heads;
  const auto of_keys = [&](const at::Tensor& gradient, const at::Tensor& like) {
    return apart && !gradient.is_contiguous() ? at::empty(like.sizes(), like.options()) : gradient;
  };
  const at::Tensor d_key = of_keys(wanted(d_k_NKD, k_NKD), k_NKD), d_value = of_keys(d_v_NKD, v_NKD);
  run(shape,
      {q_NHD, k_NKD, v_NKD, forward.out_NHD, forward.saved[0], d_out_NHD.contiguous(), wanted(d_q_NHD, q_NHD),
       d_key, d_value},
      static_cast<int64_t>(starts.size()) - 1, forward.saved.back());
  if (d_k_NKD.defined() && !d_k_NKD.is_same(d_key)) d_k_NKD.copy_(d_key);
  if (!d_v_NKD.is_same(d_value)) d_v_NKD.copy_(d_value);
}

int64_t cudnn_workspace_bytes(const CudnnShape& shape) {
  const int64_t rows = shape.packed ? shape.tokens : shape.documents * shape.length,
                queries = rows * shape.heads * shape.head_dim, grouped = shape.heads != shape.kv_heads;
  // Sums of dO * O; dK and dV of all query heads.
  const int64_t common = 4 * rows * shape.heads + grouped * (shape.packed ? 8 : 4) * queries;
  if (shape.in_fixed_order)  // the scores' gradients
    return common + 2 * shape.documents * shape.heads * shape.length * shape.length;
  // Sums of dQ.
  return common + 4 * (shape.packed ? rows * shape.row[kDQuery] : queries);
}

}  // namespace satune
