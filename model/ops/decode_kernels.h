// Kernels of a decode step, without LibTorch: a few rows against a weight or against the KV cache. Memory
// bound, so a weight is read once for all rows. Each result is summed in an order of its own that depends
// neither on the other rows nor on how outputs are dealt out: a row gives the same bits alone and in a batch.
#pragma once

#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

/// y[row * y_stride + o] = sum_i x[row * inputs + i] * weight[o * inputs + i] for o in [begin, end), in fp32.
/// x: from widen_for_products() of the same T.
template <typename T>
void few_row_products(const float* x, int64_t rows, const T* weight, int64_t inputs, int64_t begin,
                      int64_t end, float* y, int64_t y_stride);

/// out[row * width + d] = sum_t weights[row * weights_stride + t] * values[t * width + d] over `length` t, in
/// fp32. `values` is [length, width].
template <typename T>
void weighted_sums(const float* weights, int64_t weights_stride, int64_t rows, const T* values,
                   int64_t length, int64_t width, float* out);

/// In place, over `length` scores.
void softmax(float* scores, int64_t length);

/// Rows [rows, inputs] times `scale`, in the order in which the weights' elements come out of memory.
template <typename T>
void widen_for_products(const T* x, int64_t rows, int64_t inputs, float scale, float* y);
/// y = x rounded once; `residual` (may be null) is added before.
template <typename T>
void narrow(const float* x, const T* residual, T* y, int64_t count);

}  // namespace satune::kernels
