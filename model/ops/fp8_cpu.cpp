#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>

#include <algorithm>

#include "model/ops/fp8_format.h"
#include "model/ops/fp8_kernels.h"

namespace satune::kernels {

template <typename T>
uint32_t largest_magnitude(const T* x, int64_t begin, int64_t end, int64_t width, int64_t row_stride) {
  uint32_t largest = 0;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      const auto value = static_cast<float>(load(x[row * row_stride + i]));
      largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffffU);
    }
  }
  return largest;
}

template <typename T>
void fp8_quantize(const T* x, int64_t begin, int64_t end, int64_t width, int64_t row_stride, bool e5m2,
                  float scale, uint8_t* bytes) {
  const float inverse = 1.0F / scale, largest = fp8::largest_of(e5m2);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      float value = static_cast<float>(load(x[row * row_stride + i])) * inverse;
      value = value > largest ? largest : value < -largest ? -largest : value;  // NaN stays
      bytes[row * width + i] = e5m2 ? c10::Float8_e5m2(value).x : c10::Float8_e4m3fn(value).x;
    }
  }
}

#define SATUNE_INSTANTIATE(T)                                                           \
  template uint32_t largest_magnitude<T>(const T*, int64_t, int64_t, int64_t, int64_t); \
  template void fp8_quantize<T>(const T*, int64_t, int64_t, int64_t, int64_t, bool, float, uint8_t*);
SATUNE_FOR_EACH_TYPE(SATUNE_INSTANTIATE)

}  // namespace satune::kernels
