// Scales and bytes of matrices in 8-bit floats.
#include <array>
#include <limits>

#include "model/ops/cuda_kernels.h"
#include "tests/kernels/kernel_fixtures.h"

namespace satune {
namespace {

using namespace testing;
using cuda::Fp8;

template <typename T>
class Fp8Kernels : public ::testing::Test {};
TYPED_TEST_SUITE(Fp8Kernels, AllElements, ElementName);

/// What a byte stands for, by the formats' definition (arXiv 2209.05433, table 1).
double number_of(uint8_t byte, Fp8 format) {
  const int bits = format == Fp8::kE4M3 ? 3 : 2, bias = format == Fp8::kE4M3 ? 7 : 15;
  const int exponent = (byte & 0x7f) >> bits, mantissa = byte & ((1 << bits) - 1);
  const bool last = exponent == (1 << (7 - bits)) - 1;
  if (format == Fp8::kE4M3 && last && mantissa == 7) return NAN;
  if (format == Fp8::kE5M2 && last) return mantissa == 0 ? INFINITY : NAN;
  const double size = exponent == 0 ? std::ldexp(mantissa, 1 - bias - bits)
                                    : std::ldexp(mantissa + (1 << bits), exponent - bias - bits);
  return (byte & 0x80) != 0 ? -size : size;
}

double largest_of(Fp8 format) {
  return format == Fp8::kE4M3 ? 448 : 57344;
}

/// The number of the format that is nearest, of two the one whose byte is even.
double nearest(double value, Fp8 format) {
  double best = 0, distance = std::numeric_limits<double>::infinity();
  uint8_t chosen = 1;
  for (int byte = 0; byte < 256; ++byte) {
    const double number = number_of(static_cast<uint8_t>(byte), format);
    if (!std::isfinite(number)) continue;
    const double here = std::fabs(number - value);
    if (here < distance || (here == distance && chosen % 2 != 0)) {
      best = number;
      distance = here;
      chosen = static_cast<uint8_t>(byte);
    }
  }
  return best;
}

struct Quantized {
  float scale = 0;
  std::vector<uint8_t> rows, columns;
  bool operator==(const Quantized&) const = default;
};

/// Of the first `width` of `stride` columns.
template <typename T>
Quantized quantize(const std::vector<double>& values, int64_t rows, int64_t width, int64_t stride, Fp8 format,
                   size_t shift = 0) {
  Array<T> x(values, shift);
  const int64_t padded = (rows + 15) / 16 * 16;
  Quantized result;
  result.rows.assign(static_cast<size_t>(rows * width), 0xAA);
  result.columns.assign(static_cast<size_t>(width * padded), 0xAA);
  auto parts = unwritten_parts(cuda::fp8_largest_parts(rows));
  cuda::fp8_largest(kElement<T>, x.data(), rows, width, stride, parts.data(), nullptr);
  cuda::fp8_scale(parts.data(), static_cast<int64_t>(parts.size()), format, &result.scale, nullptr);
  cuda::fp8_quantize(kElement<T>, x.data(), rows, width, stride, format, &result.scale, result.rows.data(),
                     result.columns.data(), padded, nullptr);
  // Each layout alone is the same.
  std::vector<uint8_t> alone(result.rows.size()), across(result.columns.size());
  cuda::fp8_quantize(kElement<T>, x.data(), rows, width, stride, format, &result.scale, alone.data(), nullptr,
                     padded, nullptr);
  cuda::fp8_quantize(kElement<T>, x.data(), rows, width, stride, format, &result.scale, nullptr,
                     across.data(), padded, nullptr);
  EXPECT_EQ(alone, result.rows);
  EXPECT_EQ(across, result.columns);
  return result;
}

TYPED_TEST(Fp8Kernels, RowsAndColumnsHoldTheNearestNumbers) {
  using T = TypeParam;
  struct Case {
    int64_t rows, width, stride;
  };
  for (const Fp8 format : {Fp8::kE4M3, Fp8::kE5M2}) {
    for (const auto& [rows, width, stride] :
         {Case{1, 1, 1}, Case{5, 16, 16}, Case{70, 72, 80}, Case{64, 128, 128}, Case{33, 19, 21}}) {
      std::vector<double> values = wave(static_cast<size_t>(rows * stride), 3, 2.5);
      for (double& value : values) value = rounded<T>(value * std::fabs(value) * 0.01);
      Quantized found;
      for (const auto order :
           {emulation::Order::kAscending, emulation::Order::kDescending, emulation::Order::kShuffled}) {
        emulation::set_order(order);
        for (const size_t shift : {0, 1}) {
          const Quantized here = quantize<T>(values, rows, width, stride, format, shift);
          if (!found.rows.empty()) EXPECT_EQ(here, found);
          found = here;
        }
      }
      emulation::set_order(emulation::Order::kAscending);
      double largest = 0;
      for (int64_t i = 0; i < rows * width; ++i)
        largest = std::max(largest, std::fabs(values[static_cast<size_t>(i / width * stride + i % width)]));
      EXPECT_EQ(found.scale, static_cast<float>(largest) / static_cast<float>(largest_of(format)));
      const int64_t padded = (rows + 15) / 16 * 16;
      const float inverse = 1.0F / found.scale;
      for (int64_t column = 0; column < width; ++column) {
        for (int64_t row = 0; row < padded; ++row) {
          const uint8_t across = found.columns[static_cast<size_t>(column * padded + row)];
          if (row >= rows) {
            ASSERT_EQ(across, 0) << row << ", " << column;
            continue;
          }
          ASSERT_EQ(across, found.rows[static_cast<size_t>(row * width + column)]) << row << ", " << column;
          const float scaled =
              static_cast<float>(values[static_cast<size_t>(row * stride + column)]) * inverse;
          ASSERT_EQ(number_of(across, format), nearest(scaled, format)) << scaled;
        }
      }
    }
  }
}

TYPED_TEST(Fp8Kernels, TheLargestNumberIsUsed) {
  using T = TypeParam;
  // Beyond it by the rounding of 1 / scale at most, and never infinity or NaN.
  for (int i = 1; i < 300; ++i) {
    const double size = rounded<T>(0.013 * i);
    for (const Fp8 format : {Fp8::kE4M3, Fp8::kE5M2}) {
      const Quantized found = quantize<T>({size, -size, size / 3}, 1, 3, 3, format);
      EXPECT_EQ(number_of(found.rows[0], format), largest_of(format)) << size;
      EXPECT_EQ(number_of(found.rows[1], format), -largest_of(format)) << size;
    }
  }
}

TYPED_TEST(Fp8Kernels, ZerosAndTinyNumbersHaveAScaleWithAnInverse) {
  using T = TypeParam;
  for (const double value : {0.0, 1e-40}) {
    const Quantized found = quantize<T>(std::vector<double>(40, value), 4, 10, 10, Fp8::kE4M3);
    EXPECT_EQ(found.scale, 0x1p-126F);
    for (const uint8_t byte : found.rows) EXPECT_TRUE(std::isfinite(number_of(byte, Fp8::kE4M3)));
  }
}

TYPED_TEST(Fp8Kernels, WhatIsNotFiniteShows) {
  using T = TypeParam;
  for (const double odd :
       {static_cast<double>(INFINITY), -static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
    std::vector<double> values(64 * 20, 0.5);
    values[777] = odd;
    const Quantized found = quantize<T>(values, 64, 20, 20, Fp8::kE5M2);
    EXPECT_FALSE(std::isfinite(found.scale));
    // Times the scale no element is a number: 0 x infinity is none either.
    for (const uint8_t byte : found.rows)
      ASSERT_FALSE(std::isfinite(number_of(byte, Fp8::kE5M2) * static_cast<double>(found.scale)));
  }
}

}  // namespace
}  // namespace satune
