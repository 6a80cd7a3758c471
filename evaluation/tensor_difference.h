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
};

struct DifferingElement {
  std::vector<int64_t> index;  ///< one number a dimension
  double value = 0, reference = 0;
};

struct TensorDifference {
  double max_absolute = 0;  ///< NaN or infinite where one tensor is
  double relative_l2 = 0;   ///< |value - reference| / |reference|
  int64_t elements = 0, beyond_tolerance = 0;
  std::optional<DifferingElement> first;  ///< in storage order; nothing where all agree
};

/// An element parts when |value - reference| > absolute + relative * |reference|, or when one of the two is
/// not finite and they are not equal. Both tensors have the same shape; any type, any device; fp64
/// arithmetic.
TensorDifference compare_tensors(const at::Tensor& value, const at::Tensor& reference, Tolerance tolerance);

}  // namespace satune
