// Attention on cards by cuDNN: kCudnn of attention.h.
#pragma once

#include <map>
#include <memory>

#include "model/ops/attention.h"
#include "model/ops/cudnn_graph.h"

namespace satune {

/// The graphs that a model has met so far. Batches whose documents all have `full_row` tokens go through a
/// graph of just that shape; others through one of packed documents, whose sizes are rounded up, most of them
/// to powers of two, so that few graphs serve all batches. Rows of q, k, v and the gradients may be strided,
/// if by multiples of 16 bytes. Nothing is copied on the way in or out, but for d_k and d_v of packed
/// documents with grouped heads: their scratch would be several times as large as the strides are.
class CudnnAttention {
 public:
  AttentionOut forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                       const std::vector<int64_t>& starts, const AttentionOptions& options);
  void backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                const at::Tensor& v_NKD, const AttentionOut& forward, const std::vector<int64_t>& starts,
                const at::Tensor& d_q_NHD, const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);
  size_t num_graphs() const { return graphs_.size(); }

 private:
  using Tensors = std::array<at::Tensor, kCudnnTensors>;
  /// `starts_on_card`: of packed documents.
  void run(CudnnShape shape, const Tensors& tensors, int64_t documents, const at::Tensor& starts_on_card);

  std::map<CudnnShape, std::unique_ptr<CudnnGraph>> graphs_;
};

/// Sizes of the graph for such documents, but for what the tensors' types and rows say.
CudnnShape cudnn_documents(const std::vector<int64_t>& starts, int64_t full_row);

/// Bytes that a backward takes while it runs, as cuDNN 9.19 answers for Hopper cards.
int64_t cudnn_workspace_bytes(const CudnnShape& shape);

}  // namespace satune
