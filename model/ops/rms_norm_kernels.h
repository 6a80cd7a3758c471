// Row kernels of RMSNorm, without LibTorch. Rows [begin, end) of contiguous [N, C] arrays.
#pragma once

#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

template <typename T>
void rms_norm_forward(const T* x, const T* weight, T* y, accumulate_t<T>* rstd, int64_t begin, int64_t end,
                      int64_t width, double eps);

/// d_x = residual + gradient; `residual` may be null. `d_weight` (accumulation type, [C]) is added to.
template <typename T>
void rms_norm_backward(const T* d_y, const T* x, const T* weight, const accumulate_t<T>* rstd,
                       const T* residual, T* d_x, accumulate_t<T>* d_weight, int64_t begin, int64_t end,
                       int64_t width);

}  // namespace satune::kernels
