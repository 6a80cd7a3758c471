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
/// documents with grouped heads: for these cuDNN has scratch with a row for each query head, as far apart as
/// theirs are.
///
/// A forward gives the same bits each time; a backward adds dQ as blocks of keys are ready. In a fixed order
/// flash's backward follows, from cuDNN's log-sum-exps: cuDNN's own takes S x S scratch for that, on Hopper 2
/// bytes for each score of a head.
class CudnnAttention {
 public:
  AttentionOut forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                       const std::vector<int64_t>& starts, const AttentionOptions& options);
  /// Of a forward without a fixed order.
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

/// What the graph for such documents is built for.
CudnnDocuments cudnn_documents(const std::vector<int64_t>& starts, int64_t full_row);

/// Bytes that a backward takes while it runs, as cuDNN 9.19 answers for Hopper cards and heads of a multiple
/// of 16.
int64_t cudnn_workspace_bytes(const CudnnShape& shape);

}  // namespace satune
