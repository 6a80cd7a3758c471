// Row kernels of the 8-bit floats, without LibTorch.
#pragma once

#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

/// Bits of the largest |x| as fp32 among rows [begin, end), which order as the numbers do, infinity and NaN
/// above all.
template <typename T>
uint32_t largest_magnitude(const T* x, int64_t begin, int64_t end, int64_t width, int64_t row_stride);

/// Rows [begin, end) of x / scale in bytes of the format (cuda_kernels.h, fp8_quantize), contiguous.
template <typename T>
void fp8_quantize(const T* x, int64_t begin, int64_t end, int64_t width, int64_t row_stride, bool e5m2,
                  float scale, uint8_t* bytes);

}  // namespace satune::kernels
