// Stands in for CUDA's header of this name: see emulator.h.
#pragma once

#include <cmath>
#include <cstdint>

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}

enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;

/// As the instruction does it with __NV_SATFINITE: rounded to nearest even; what is beyond the largest
/// number, infinity too, becomes that number; NaN stays one.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t,
                                                __nv_fp8_interpretation_t format) {
  const int mantissa = format == __NV_E4M3 ? 3 : 2, bias = format == __NV_E4M3 ? 7 : 15;
  const double largest = format == __NV_E4M3 ? 448 : 57344;
  const auto sign = static_cast<unsigned char>(std::signbit(x) ? 0x80 : 0);
  if (std::isnan(x)) return 0x7f;
  double size = std::fabs(static_cast<double>(x));
  if (size >= largest) return sign | (format == __NV_E4M3 ? 0x7e : 0x7b);
  int exponent = size == 0 ? 1 - bias : std::ilogb(size);
  if (exponent < 1 - bias) exponent = 1 - bias;  // subnormal ones have the smallest normal one's step
  const double steps = std::nearbyint(std::ldexp(size, mantissa - exponent));
  // A carry out of the mantissa goes where it belongs: into the exponent.
  const int first = exponent == 1 - bias ? 0 : (exponent + bias - 1) << mantissa;
  const int code = first + static_cast<int>(steps);
  const int most = format == __NV_E4M3 ? 0x7e : 0x7b;
  return static_cast<unsigned char>(sign | (code > most ? most : code));
}

inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 x, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t format) {
  return static_cast<unsigned short>(__nv_cvt_float_to_fp8(x.x, saturation, format) |
                                     __nv_cvt_float_to_fp8(x.y, saturation, format) << 8);
}
