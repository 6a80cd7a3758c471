// How far two tensors are apart, and where they part first.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace satune {

struct Tolerance {
  double relative = 1e-4;
  double absolute = 1e-4;
  /// Set: the tensor as a whole is judged by it, and the two above are not read. For what has no scale that
  /// is known beforehand (gradients) or is rounded differently (precisions).
  std::optional<double> relative_l2 = std::nullopt;
};

struct DifferingElement {
  std::vector<int64_t> index;  ///< one number a dimension
  double value = 0, reference = 0;
};

struct TensorDifference {
  double max_absolute = 0;  ///< NaN or infinite where one tensor is
  double relative_l2 = 0;   ///< |value - reference| / |reference|
  int64_t elements = 0, beyond_tolerance = 0;
  /// The first element beyond the tolerance in storage order; by relative_l2 the one that differs most.
  /// Nothing where the tensors agree.
  std::optional<DifferingElement> first;
};

/// An element parts when |value - reference| > absolute + relative * |reference|, or when one of the two is
/// not finite and they are not equal. By Tolerance::relative_l2 a tensor parts when its own is larger, or is
/// not a number; beyond_tolerance is 0 then. Both tensors have the same shape; any type, any device; fp64
/// arithmetic.
TensorDifference compare_tensors(const at::Tensor& value, const at::Tensor& reference, Tolerance tolerance);

}  // namespace satune
