#include "evaluation/isotropy.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "model/ops/attention.h"
#include "model/ops/dispatch.h"

namespace satune {
namespace {

/// [H] of one layer. Heads are taken a few at a time, each with its own keys.
at::Tensor attention_values(const at::Tensor& q_NHD, const at::Tensor& k_NKD, int64_t block_bytes) {
  const int64_t N = q_NHD.size(0), H = q_NHD.size(1), group = H / k_NKD.size(1);
  const at::ScalarType wide = statistics_type(q_NHD.scalar_type());
  const int64_t head_bytes = N * N * static_cast<int64_t>(at::elementSize(wide));
  const int64_t heads = std::clamp<int64_t>(block_bytes / head_bytes, 1, H);
  at::Tensor values_H = at::empty({H}, at::kDouble);
  for (int64_t begin = 0; begin < H; begin += heads) {
    const int64_t count = std::min(heads, H - begin);
    const at::Tensor key_heads =
        at::arange(begin, begin + count, at::TensorOptions(at::kLong).device(q_NHD.device()))
            .floor_divide(group);
    const at::Tensor weights_HTS = attention_probabilities(q_NHD.narrow(1, begin, count),
                                                           k_NKD.index_select(1, key_heads), /*causal=*/true);
    values_H.narrow(0, begin, count).copy_(weighted_cumulative_variance(weights_HTS));
  }
  return values_H;
}

/// Deviations from the columns' means, by the largest of the matrix, so that squares of squares neither
/// vanish nor overflow. A column that the rounding of its mean alone sets apart does not vary.
at::Tensor scaled_deviations(const at::Tensor& x_BRC) {
  const at::Tensor wide = x_BRC.to(statistics_type(x_BRC.scalar_type()));
  const double epsilon = wide.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                           : std::numeric_limits<float>::epsilon();
  const at::Tensor centred = wide - wide.mean(1, /*keepdim=*/true);
  const at::Tensor noise_B1C = wide.abs().amax(1, /*keepdim=*/true).mul_(8 * epsilon);
  const at::Tensor varies_B1C = centred.abs().amax(1, /*keepdim=*/true).gt(noise_B1C);
  // Divided, not multiplied by a reciprocal, which would overflow for the smallest numbers.
  const at::Tensor kept = centred.mul_(varies_B1C), largest_B11 = kept.abs().amax({1, 2}, /*keepdim=*/true);
  return kept.div_(at::where(largest_B11 > 0, largest_B11, at::ones_like(largest_B11)));
}

}  // namespace

at::Tensor weighted_cumulative_variance(const at::Tensor& x_BRC) {
  const at::Tensor centred = scaled_deviations(x_BRC);
  const at::Tensor transposed = centred.transpose(1, 2);
  const at::Tensor gram =
      centred.size(1) < centred.size(2) ? at::matmul(centred, transposed) : at::matmul(transposed, centred);
  const at::Tensor trace_B = gram.diagonal(0, 1, 2).sum(-1, false, at::kDouble);
  const at::Tensor squares_B = gram.square().sum({1, 2}, false, at::kDouble);
  const at::Tensor value_B = (squares_B / trace_B.square() + 1) / 2;
  return at::where(trace_B > 0, value_B, std::numeric_limits<double>::quiet_NaN()).to(at::kCPU);
}

void VarianceSums::add(const at::Tensor& values) {
  *this += {values.nan_to_num(0.0), values.isnan().logical_not().to(at::kDouble)};
}

at::Tensor VarianceSums::mean() const {
  return sum / count;
}

VarianceSums& VarianceSums::operator+=(const VarianceSums& other) {
  if (!other.sum.defined()) return *this;
  sum = sum.defined() ? sum + other.sum : other.sum;
  count = count.defined() ? count + other.count : other.count;
  return *this;
}

IsotropySums& IsotropySums::operator+=(const IsotropySums& other) {
  documents += other.documents;
  attention_LH += other.attention_LH;
  hidden_states += other.hidden_states;
  return *this;
}

void add_isotropy(IsotropySums& sums, const std::vector<at::Tensor>& q_NHD,
                  const std::vector<at::Tensor>& k_NKD, const std::vector<at::Tensor>& hidden_NC,
                  int64_t block_bytes) {
  if (q_NHD[0].size(0) < 2) return;
  std::vector<at::Tensor> attention, hidden;
  for (size_t layer = 0; layer < q_NHD.size(); ++layer)
    attention.push_back(attention_values(q_NHD[layer], k_NKD[layer], block_bytes));
  for (const at::Tensor& x_NC : hidden_NC) hidden.push_back(weighted_cumulative_variance(x_NC.unsqueeze(0)));
  ++sums.documents;
  sums.attention_LH.add(at::stack(attention));
  sums.hidden_states.add(at::cat(hidden));
}

}  // namespace satune
