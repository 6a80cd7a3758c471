// Causal attention inside documents: softmax(Q K^T / sqrt(D)) V, never across a document border, with grouped
// query heads (query head h reads key/value head h / (H / K)). No S x S tensor exists, but in kEager.
//
// Shared Attention uses the identity softmax(Q_a K_a^T) V_l = attention(Q_a, K_a, V_l): a shared layer calls
// this with its anchor's q and k and its own v.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <memory>
#include <vector>

namespace satune {

enum class AttentionKernel {
  kFlash,  ///< on the CPU attention_kernels.h; on a card LibTorch's, all documents in one call, up to 32 bits
  kCudnn,  ///< attention_cudnn.h, all documents in one call; cards, 16-bit
  kEager,  ///< probabilities of one document at a time, materialised (fp32; fp64 for fp64): for checks
};

class CudnnAttention;

/// How a model attends.
struct AttentionChoice {
  AttentionKernel kernel = AttentionKernel::kFlash;
  /// On a card the backward adds dQ over blocks of keys, either in a fixed order, so that it gives the same
  /// bits each time, or as they are ready. In a fixed order kFlash's backward follows kCudnn's forward. On
  /// the CPU and of kEager the order is always fixed.
  bool in_fixed_order = true;
  /// Tokens. kCudnn has graphs of their own for batches whose documents all have so many.
  int64_t full_row = 0;
  std::shared_ptr<CudnnAttention> cudnn = {};  ///< of kCudnn
};

/// Of a call, beside its tensors.
struct AttentionOptions {
  AttentionChoice choice = {};
  /// The offsets of documents as int32 on the card of q. Undefined: made there, for which the host waits.
  at::Tensor starts_on_card = {};
  /// DeviceBatch::parents. With any, on the CPU only, and nothing is saved.
  const std::vector<int64_t>* parents = nullptr;
};

struct AttentionOut {
  at::Tensor out_NHD;             ///< contiguous
  std::vector<at::Tensor> saved;  ///< for the backward: log-sum-exp, among others
  AttentionChoice choice = {};    ///< how it was made
};

/// q [N, H, D], k and v [N, K, D]; rows may be strided (views into a fused projection).
/// document_starts [documents + 1]: offsets into N, last = N.
AttentionOut attention_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const std::vector<int64_t>& document_starts,
                               const AttentionOptions& options = {});

/// Writes d_q [N, H, D], d_k and d_v [N, K, D] (preallocated, rows may be strided). d_q and d_k are undefined
/// where nobody needs them.
void attention_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward,
                        const std::vector<int64_t>& document_starts, const at::Tensor& d_q_NHD,
                        const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD);

/// Bytes of the buffers that a backward of kFlash takes on the CPU beside its tensors, with documents of
/// `length` tokens.
std::vector<int64_t> attention_backward_buffers(at::ScalarType type, int64_t documents, int64_t length,
                                                int64_t heads, int64_t kv_heads, int64_t head_dim,
                                                int64_t threads);

/// The oracle: the probabilities [H, N, N] of one document, materialised (fp32 softmax, fp64 for fp64);
/// tests, decode and kEager.
at::Tensor attention_probabilities(const at::Tensor& q_NHD, const at::Tensor& k_NKD, bool causal);

/// probabilities [H, T, S] times v [S, K, D] -> [T, H, D].
at::Tensor apply_probabilities(const at::Tensor& probabilities_HTS, const at::Tensor& v_SKD);

}  // namespace satune
