// exp() that the compiler vectorises. fp32: range reduction by ln 2 in two parts and a degree-6 polynomial
// (Cephes' expf coefficients), about 1 ulp; below -87.3 it flushes to 0, above 88.7 it gives infinity.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace satune::kernels {

inline double fast_exp(double x) {
  return std::exp(x);
}

inline float fast_exp(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < -87.3f ? -87.3f : (x > 88.7f ? 88.7f : x);
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(n);
  // Two factors, because 2^128 has no fp32 representation of its own.
  const int32_t half = exponent >> 1;
  const float low = std::bit_cast<float>((half + 127) << 23);
  const float high = std::bit_cast<float>((exponent - half + 127) << 23);
  const float value = p * low * high;
  const float bounded = x < -87.3f ? 0.0f : (x > 88.7f ? std::numeric_limits<float>::infinity() : value);
  return x != x ? x : bounded;
}

}  // namespace satune::kernels
