// The two 8-bit formats in numbers, for the card's kernels and the CPU's alike: no header of LibTorch or
// CUDA.
#pragma once

#include <cstdint>

namespace satune::fp8 {

inline constexpr float kLargestE4M3 = 448, kLargestE5M2 = 57344;
constexpr float largest_of(bool e5m2) {
  return e5m2 ? kLargestE5M2 : kLargestE4M3;
}

/// Of scales: fp32's smallest normal number, 2^-126, whose inverse is a number as well.
inline constexpr float kSmallestScale = 1.17549435e-38F;

/// Rows of a matrix that is stored by columns: cuBLAS takes multiples of 16.
inline constexpr int64_t kMultiple = 16;
constexpr int64_t padded_rows(int64_t rows) {
  return (rows + kMultiple - 1) / kMultiple * kMultiple;
}

}  // namespace satune::fp8
