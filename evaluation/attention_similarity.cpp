#include "evaluation/attention_similarity.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/ops/attention.h"
#include "model/ops/dispatch.h"

namespace satune {

SimilaritySums& SimilaritySums::operator+=(const SimilaritySums& other) {
  documents += other.documents;
  if (!other.cosine_PP.defined()) return *this;
  cosine_PP = cosine_PP.defined() ? cosine_PP + other.cosine_PP : other.cosine_PP;
  return *this;
}

void add_similarity(SimilaritySums& sums, const std::vector<at::Tensor>& q_NHD,
                    const std::vector<at::Tensor>& k_NKD, int64_t block_bytes) {
  const int64_t N = q_NHD[0].size(0), H = q_NHD[0].size(1), L = static_cast<int64_t>(q_NHD.size()), P = L * H;
  const at::ScalarType wide = statistics_type(q_NHD[0].scalar_type());
  const auto options = q_NHD[0].options();
  const int64_t row_bytes = P * N * static_cast<int64_t>(at::elementSize(wide));
  const int64_t rows = std::clamp<int64_t>(block_bytes / row_bytes, 1, N);
  at::Tensor products_PP = at::zeros({P, P}, options.dtype(at::kDouble));
  for (int64_t begin = 0; begin < N; begin += rows) {
    const int64_t count = std::min(rows, N - begin), keys = begin + count;
    at::Tensor weights_LHTS = at::empty({L, H, count, keys}, options.dtype(wide));
    for (int64_t layer = 0; layer < L; ++layer) {
      weights_LHTS.select(0, layer).copy_(attention_probabilities(
          q_NHD[layer].narrow(0, begin, count), k_NKD[layer].narrow(0, 0, keys), /*causal=*/true));
    }
    const at::Tensor flat = weights_LHTS.view({P, count * keys});
    products_PP.add_(at::matmul(flat, flat.t()));
  }
  const at::Tensor norm_P = products_PP.diagonal().sqrt();
  sums += {1, (products_PP / (norm_P.unsqueeze(0) * norm_P.unsqueeze(1))).to(at::kCPU)};
}

at::Tensor mean_cosines(const SimilaritySums& sums, int64_t layers) {
  TORCH_CHECK(sums.documents > 0, "no document");
  const int64_t heads = sums.cosine_PP.size(0) / layers;
  return (sums.cosine_PP / static_cast<double>(sums.documents)).view({layers, heads, layers, heads});
}

at::Tensor head_similarity(const at::Tensor& cosines_LHLH) {
  return cosines_LHLH.diagonal(0, 1, 3).permute({2, 0, 1}).contiguous();
}

at::Tensor layer_similarity(const at::Tensor& cosines_LHLH) {
  return head_similarity(cosines_LHLH).mean(0);
}

}  // namespace satune
