#include <algorithm>

#ifdef __FMA__
#include <immintrin.h>
#endif

#include "model/ops/decode_kernels.h"
#include "model/ops/fast_exp.h"

namespace satune::kernels {
namespace {

constexpr int64_t kLanes = 8, kBlock = 2 * kLanes;
constexpr int64_t kRowTile = 4;  // rows whose sums stay in registers together

using Floats = float __attribute__((vector_size(32)));
using Words = uint32_t __attribute__((vector_size(32)));
using FloatsInMemory = float __attribute__((vector_size(32), aligned(4), may_alias));
using WordsInMemory = uint32_t __attribute__((vector_size(32), aligned(2), may_alias));

/// kBlock elements in the order that they come apart in cheapest: of 16-bit ones the even, then the odd.
struct Block {
  Floats low, high;
};

inline Floats load_lanes(const float* x) {
  return *reinterpret_cast<const FloatsInMemory*>(x);
}
inline void store_lanes(float* x, Floats lanes) {
  *reinterpret_cast<FloatsInMemory*>(x) = lanes;
}
inline Block load_block(const float* x) {
  return {load_lanes(x), load_lanes(x + kLanes)};
}
inline Block load_block(const c10::BFloat16* x) {
  const Words words = *reinterpret_cast<const WordsInMemory*>(x);
  return {(Floats)(words << 16), (Floats)(words & 0xffff0000u)};
}

/// Where element i of a block stands in that order.
template <typename T>
constexpr int64_t place(int64_t i) {
  if constexpr (sizeof(T) == 2) return i / 2 + i % 2 * kLanes;
  return i;
}

/// Said so, because whether the compiler fuses a product and a sum by itself depends on how many of them
/// stand side by side, and then so would the bits (it is told not to: -ffp-contract=off).
inline float fused(float a, float b, float sum) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, sum);
#else
  return a * b + sum;
#endif
}
inline Floats fused(Floats a, Floats b, Floats sum) {
#ifdef __FMA__
  return _mm256_fmadd_ps(a, b, sum);
#else
  return a * b + sum;
#endif
}

inline float sum_of_lanes(Floats x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/// M rows against R outputs.
template <typename T, int M, int R>
inline __attribute__((always_inline)) void product_tile(const float* x, const T* weight, int64_t inputs,
                                                        float* y, int64_t y_stride) {
  Floats sums[M][R] = {};
  int64_t i = 0;
  for (; i + kBlock <= inputs; i += kBlock) {
    Block w[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      // Of the next tile: a row is too short for the processor's own prefetching to catch up with it.
      __builtin_prefetch(weight + (r + R) * inputs + i);
      w[r] = load_block(weight + r * inputs + i);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats row = load_lanes(x + m * inputs + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[m][r] = fused(row, w[r].low, sums[m][r]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats row = load_lanes(x + m * inputs + i + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[m][r] = fused(row, w[r].high, sums[m][r]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < R; ++r) {
      float sum = sum_of_lanes(sums[m][r]);
      for (int64_t k = i; k < inputs; ++k) sum = fused(x[m * inputs + k], load(weight[r * inputs + k]), sum);
      y[m * y_stride + r] = sum;
    }
  }
}

/// Outputs at a time: enough chains of additions to hide their latency.
template <int M>
constexpr int kOutputTile = M == 1   ? 8
                            : M == 2 ? 4
                                     : 3;

template <typename T, int M>
void products(const float* x, const T* weight, int64_t inputs, int64_t begin, int64_t end, float* y,
              int64_t y_stride) {
  constexpr int kOutputs = kOutputTile<M>;
  for (; begin + kOutputs <= end; begin += kOutputs)
    product_tile<T, M, kOutputs>(x, weight + begin * inputs, inputs, y + begin, y_stride);
  for (; begin < end; ++begin) product_tile<T, M, 1>(x, weight + begin * inputs, inputs, y + begin, y_stride);
}

/// M rows of weights against the block of columns at `values`.
template <typename T, int M>
inline void weighted_block(const float* weights, int64_t stride, const T* values, int64_t length,
                           int64_t width, float* out) {
  Block sums[M] = {};
  for (int64_t t = 0; t < length; ++t) {
    const Block value = load_block(values + t * width);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Floats weight = weights[m * stride + t] - Floats{};
      sums[m].low = fused(weight, value.low, sums[m].low);
      sums[m].high = fused(weight, value.high, sums[m].high);
    }
  }
  for (int m = 0; m < M; ++m) {
    float ordered[kBlock];
    store_lanes(ordered, sums[m].low);
    store_lanes(ordered + kLanes, sums[m].high);
    for (int64_t i = 0; i < kBlock; ++i) out[m * width + i] = ordered[place<T>(i)];
  }
}

template <typename T, int M>
void weighted(const float* weights, int64_t stride, const T* values, int64_t length, int64_t width,
              float* out) {
  int64_t d = 0;
  for (; d + kBlock <= width; d += kBlock)
    weighted_block<T, M>(weights, stride, values + d, length, width, out + d);
  for (; d < width; ++d) {
    for (int m = 0; m < M; ++m) {
      float sum = 0;
      for (int64_t t = 0; t < length; ++t)
        sum = fused(weights[m * stride + t], load(values[t * width + d]), sum);
      out[m * width + d] = sum;
    }
  }
}

/// f.operator()<M>(first row) for tiles of rows.
template <typename F>
inline void for_row_tiles(int64_t rows, F&& f) {
  int64_t row = 0;
  for (; row + kRowTile <= rows; row += kRowTile) f.template operator()<kRowTile>(row);
  switch (rows - row) {
    case 3:
      return f.template operator()<3>(row);
    case 2:
      return f.template operator()<2>(row);
    case 1:
      return f.template operator()<1>(row);
    default:
      return;
  }
}

}  // namespace

template <typename T>
void few_row_products(const float* x, int64_t rows, const T* weight, int64_t inputs, int64_t begin,
                      int64_t end, float* y, int64_t y_stride) {
  // More rows than a tile: a stretch of the weight that stays in a near cache goes past all of them.
  constexpr int64_t kStretch = 24;
  const int64_t stretch = rows <= kRowTile ? end - begin : kStretch;
  for (int64_t first = begin; first < end; first += stretch) {
    const int64_t last = std::min(end, first + stretch);
    for_row_tiles(rows, [&]<int M>(int64_t row) {
      products<T, M>(x + row * inputs, weight, inputs, first, last, y + row * y_stride, y_stride);
    });
  }
}

template <typename T>
void weighted_sums(const float* weights, int64_t weights_stride, int64_t rows, const T* values,
                   int64_t length, int64_t width, float* out) {
  for_row_tiles(rows, [&]<int M>(int64_t row) {
    weighted<T, M>(weights + row * weights_stride, weights_stride, values, length, width, out + row * width);
  });
}

void softmax(float* scores, int64_t length) {
  const float highest = *std::max_element(scores, scores + length);
  for (int64_t t = 0; t < length; ++t) scores[t] = fast_exp(scores[t] - highest);
  Floats lanes = {};
  int64_t t = 0;
  for (; t + kLanes <= length; t += kLanes) lanes += load_lanes(scores + t);
  float sum = sum_of_lanes(lanes);
  for (; t < length; ++t) sum += scores[t];
  const float scale = 1.0f / sum;
  for (int64_t i = 0; i < length; ++i) scores[i] *= scale;
}

template <typename T>
void widen_for_products(const T* x, int64_t rows, int64_t inputs, float scale, float* y) {
  for (int64_t row = 0; row < rows; ++row, x += inputs, y += inputs) {
    int64_t i = 0;
    for (; i + kBlock <= inputs; i += kBlock) {
      const Block block = load_block(x + i);
      store_lanes(y + i, block.low * scale);
      store_lanes(y + i + kLanes, block.high * scale);
    }
    for (; i < inputs; ++i) y[i] = load(x[i]) * scale;
  }
}

template <typename T>
void narrow(const float* x, const T* residual, T* y, int64_t count) {
  if (residual == nullptr) {
    for (int64_t i = 0; i < count; ++i) y[i] = store<T>(x[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] = store<T>(load(residual[i]) + x[i]);
  }
}

#define SATUNE_INSTANTIATE(T)                                                                           \
  template void few_row_products<T>(const float*, int64_t, const T*, int64_t, int64_t, int64_t, float*, \
                                    int64_t);                                                           \
  template void weighted_sums<T>(const float*, int64_t, int64_t, const T*, int64_t, int64_t, float*);   \
  template void widen_for_products<T>(const T*, int64_t, int64_t, float, float*);                       \
  template void narrow<T>(const float*, const T*, T*, int64_t);
SATUNE_INSTANTIATE(float)
SATUNE_INSTANTIATE(c10::BFloat16)
#undef SATUNE_INSTANTIATE

}  // namespace satune::kernels
