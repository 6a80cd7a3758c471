// How alike the attention weights of two heads are: the cosine of their matrices, taken as vectors,
//   cos(i, j) = <A_i, A_j> / (|A_i| |A_j|),   <A, B> = sum over queries t and keys s of A[t, s] B[t, s],
// per document, averaged over documents. The similarity of two layers is the mean over their heads, head h
// with head h (arXiv 2407.12866).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace satune {

/// Sums over documents, to be added over shares in any order. P = layers * heads; head h of layer l is
/// l * heads + h.
struct SimilaritySums {
  int64_t documents = 0;
  at::Tensor cosine_PP;  ///< fp64 on the CPU: sums of cosines; undefined without documents

  SimilaritySums& operator+=(const SimilaritySums& other);
};

/// Attention weights that exist at a time: a block of query rows of all heads, of as many rows as fit in this
/// many bytes, and one row at least (P * N elements). Never all matrices.
inline constexpr int64_t kSimilarityBlockBytes = int64_t{64} << 20;

/// Adds one document. Queries [N, H, D] and keys [N, K, D] of each layer, post-RoPE; any type and device; the
/// weights are computed in fp32 (fp64 for fp64). Causal.
void add_similarity(SimilaritySums& sums, const std::vector<at::Tensor>& q_NHD,
                    const std::vector<at::Tensor>& k_NKD, int64_t block_bytes = kSimilarityBlockBytes);

/// Mean cosines [layers, heads, layers, heads], fp64. There must be a document.
at::Tensor mean_cosines(const SimilaritySums& sums, int64_t layers);

/// Of mean_cosines(): [layers, layers], the mean over equal heads.
at::Tensor layer_similarity(const at::Tensor& cosines_LHLH);
/// Of mean_cosines(): [heads, layers, layers], head h with head h.
at::Tensor head_similarity(const at::Tensor& cosines_LHLH);

}  // namespace satune
