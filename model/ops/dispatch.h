// What the ops share: element-type dispatch, statistics types and the way gradients are written.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <algorithm>

namespace satune {

/// fp64 keeps statistics in fp64, everything else in fp32.
inline at::ScalarType statistics_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

/// Calls f.template operator()<T>() for the tensor's floating type.
template <typename F>
void dispatch_floating(at::ScalarType type, F&& f) {
  switch (type) {
    case at::kFloat:
      return f.template operator()<float>();
    case at::kDouble:
      return f.template operator()<double>();
    case at::kBFloat16:
      return f.template operator()<c10::BFloat16>();
    case at::kHalf:
      return f.template operator()<c10::Half>();
    default:
      TORCH_CHECK(false, "not a floating element type: ", type);
  }
}

/// Rows a parallel task should hold so that starting it is worth the while.
inline int64_t rows_per_task(int64_t width) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(width, 1));
}

/// gradient = value, or gradient += value. A sum over two element types makes LibTorch widen the narrower
/// operand in a buffer of its own: on the CPU of so many elements at a time.
inline void write_gradient(const at::Tensor& gradient, const at::Tensor& value, bool accumulate) {
  constexpr int64_t kAtATime = int64_t{1} << 18;
  if (!accumulate) {
    gradient.copy_(value);
  } else if (gradient.scalar_type() == value.scalar_type() || !gradient.is_cpu() || gradient.dim() == 0) {
    gradient.add_(value);
  } else {
    const int64_t rows = gradient.size(0);
    const int64_t step = std::max<int64_t>(1, kAtATime * rows / std::max<int64_t>(1, gradient.numel()));
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t count = std::min(step, rows - row);
      gradient.narrow(0, row, count).add_(value.narrow(0, row, count));
    }
  }
}

}  // namespace satune
