// Isotropy as the weighted cumulative variance of principal components.
//
// Rows are observations, columns are variables; with the eigenvalues of the columns' covariance in descending
// order, r_k = lambda_k / sum(lambda) is the share of variance of component k and c_k = r_1 + ... + r_k the
// cumulative share. Each component's cumulative share is weighted by its own:
//   WCV = sum_k r_k c_k = (1 + sum_k r_k^2) / 2.
// 1 = all variance along one direction; (1 + 1/n) / 2 = spread evenly over n: lower is more isotropic. The
// paper (arXiv 2407.12866) names the measure; its code has none of it, so this reading of the name is ours.
//
// The closed form (every ordered pair j <= k counts once) needs no eigenvalues: sum r_k^2 = |C|_F^2 / tr(C)^2
// with C the covariance, or the Gram matrix of the centred rows, whichever is smaller.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace satune {

/// Of each matrix [B, rows, columns] -> [B] fp64 on the CPU, whatever its scale. NaN where the rows do not
/// vary by more than rounding does.
at::Tensor weighted_cumulative_variance(const at::Tensor& x_BRC);

/// Values of documents where there is one, and how many have one: a document without variance counts nothing.
struct VarianceSums {
  at::Tensor sum, count;  ///< fp64 of one shape; undefined without documents

  void add(const at::Tensor& values);  ///< of one document; NaN = none
  VarianceSums& operator+=(const VarianceSums& other);
  at::Tensor mean() const;  ///< NaN where no document has a value
};

/// A sum of such values over documents.
struct IsotropySums {
  int64_t documents = 0;       ///< of two tokens or more
  VarianceSums attention_LH;   ///< rows = queries of a document, columns = keys
  VarianceSums hidden_states;  ///< [L + 1]; rows = tokens: the embedding, then each layer's output

  IsotropySums& operator+=(const IsotropySums& other);
};

/// Attention weights that exist at a time: the matrices of as many heads of one layer as fit in this many
/// bytes, and one head's at least (N * N elements), with its covariance and the softmax's intermediates
/// beside it.
inline constexpr int64_t kIsotropyBlockBytes = int64_t{64} << 20;

/// Adds one document; one of a single token is left out. Queries, keys and hidden states ([N, C], L + 1 of
/// them) as in add_similarity().
void add_isotropy(IsotropySums& sums, const std::vector<at::Tensor>& q_NHD,
                  const std::vector<at::Tensor>& k_NKD, const std::vector<at::Tensor>& hidden_NC,
                  int64_t block_bytes = kIsotropyBlockBytes);

}  // namespace satune
