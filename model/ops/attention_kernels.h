// Causal attention inside one document on the CPU, without LibTorch: forward and backward over blocks of
// queries and keys, of which no more than a block of scores exists at a time (Dao 2023, "FlashAttention-2").
// Sums are fp32 (fp64 for fp64). Operands of products are fp32 too; bf16 where the CPU multiplies pairs of
// bf16 (AVX-512 BF16), as cards do. An element's bits depend on its document alone, not on the threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

/// Queries that a forward takes at a time: the beginning of its range is a multiple of it.
constexpr int64_t kAttentionBlock = 64;

/// Row i of a matrix starts at data + i * stride.
template <typename T>
struct RowsOf {
  T* data = nullptr;
  int64_t stride = 0;
};

/// One key/value head of a document, and the `heads` query heads that read it: head h is columns
/// [h * head_dim, (h + 1) * head_dim) of q.
template <typename T>
struct HeadGroup {
  int64_t length, head_dim, heads;
  RowsOf<const T> q, k, v;
};

/// What a backward reads beside the group, with heads side by side as in q; log_sum of head h is
/// log_sum[h * log_sum_stride + row].
template <typename T>
struct HeadGroupGradient {
  RowsOf<const T> d_out, out;
  const accumulate_t<T>* log_sum;
  int64_t log_sum_stride;
  RowsOf<T> d_q;  ///< null: neither d_q nor d_k is wanted
};

/// Queries [begin, end) of all heads: out = softmax(q k^T / sqrt(head_dim)) v, log_sum =
/// log(sum(exp(scores))).
template <typename T>
void attention_forward(const HeadGroup<T>& group, int64_t begin, int64_t end, const RowsOf<T>& out,
                       accumulate_t<T>* log_sum, int64_t log_sum_stride, std::byte* workspace);
template <typename T>
int64_t attention_forward_workspace(int64_t end, int64_t head_dim);  ///< bytes

/// d_q of heads [first, last), and the sums over them of d_k and d_v as [length, attention_columns] arrays.
/// Sums of one head each, added up in the order of the heads, have the bits of all at once.
template <typename T>
void attention_backward(const HeadGroup<T>& group, const HeadGroupGradient<T>& gradient, int64_t first,
                        int64_t last, accumulate_t<T>* d_k_sum, accumulate_t<T>* d_v_sum,
                        std::byte* workspace);
template <typename T>
int64_t attention_backward_workspace(int64_t length, int64_t head_dim);  ///< bytes
template <typename T>
int64_t attention_columns(int64_t head_dim);

/// Rounds [rows, columns] sums to the first head_dim columns of `to`.
template <typename T>
void attention_store(const accumulate_t<T>* sums, int64_t columns, int64_t rows, int64_t head_dim,
                     const RowsOf<T>& to);

}  // namespace satune::kernels
