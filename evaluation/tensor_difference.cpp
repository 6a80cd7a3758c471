#include "evaluation/tensor_difference.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace satune {
namespace {

std::vector<int64_t> index_of(int64_t flat, at::IntArrayRef shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t d = shape.size(); d-- > 0; flat /= shape[d]) index[d] = flat % shape[d];
  return index;
}

bool parts(double value, double reference, Tolerance tolerance) {
  if (value == reference) return false;
  // Written so that a NaN on either side parts.
  return !(std::abs(value - reference) <= tolerance.absolute + tolerance.relative * std::abs(reference)) ||
         !std::isfinite(value) || !std::isfinite(reference);
}

}  // namespace

TensorDifference compare_tensors(const at::Tensor& value, const at::Tensor& reference, Tolerance tolerance) {
  TORCH_CHECK(value.sizes() == reference.sizes(), "tensors of different shapes");
  const at::Tensor a = value.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor b = reference.to(at::kCPU, at::kDouble).contiguous();
  const double* values = a.const_data_ptr<double>();
  const double* references = b.const_data_ptr<double>();
  const auto element = [&](int64_t i) {
    return DifferingElement{index_of(i, a.sizes()), values[i], references[i]};
  };
  TensorDifference result;
  result.elements = a.numel();
  double difference_squared = 0, reference_squared = 0;
  int64_t worst = 0;
  for (int64_t i = 0; i < result.elements; ++i) {
    // Of two equal infinities the difference would be a NaN.
    const double difference = values[i] == references[i] ? 0 : std::abs(values[i] - references[i]);
    // std::max would drop a NaN.
    if (!(difference <= result.max_absolute) && !std::isnan(result.max_absolute)) {
      result.max_absolute = difference;
      worst = i;
    }
    difference_squared += difference * difference;
    reference_squared += references[i] * references[i];
    if (tolerance.relative_l2 || !parts(values[i], references[i], tolerance)) continue;
    if (result.beyond_tolerance++ == 0) result.first = element(i);
  }
  if (difference_squared != 0) result.relative_l2 = std::sqrt(difference_squared / reference_squared);
  // Written so that a NaN parts.
  if (tolerance.relative_l2 && !(result.relative_l2 <= *tolerance.relative_l2)) result.first = element(worst);
  return result;
}

}  // namespace satune
