// Arrays of the kernels' element types and comparisons with fp64, for kernels run by tests/cuda_emulation.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "model/ops/cuda_elements.cuh"
#include "tests/cuda_emulation/emulator.h"

namespace satune::testing {

using cuda::Element;

template <typename T>
T narrowed(double value) {
  return cuda::store<T>(static_cast<cuda::wide_t<T>>(value));
}

/// The nearest value that T has.
template <typename T>
double rounded(double value) {
  return static_cast<double>(cuda::load(narrowed<T>(value)));
}

/// An allocation of exactly its elements, so that ASan sees any other access. `shift`: elements between a
/// border of 16 bytes and the first one.
template <typename T>
class Array {
 public:
  explicit Array(const std::vector<double>& values, size_t shift = 0)
      : size_(values.size()),
        shift_(shift),
        memory_(static_cast<T*>(::operator new((size_ + shift) * sizeof(T), kAlignment))) {
    for (size_t i = 0; i < size_; ++i) data()[i] = narrowed<T>(values[i]);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { ::operator delete(memory_, kAlignment); }

  T* data() { return memory_ + shift_; }
  size_t size() const { return size_; }
  double operator[](size_t i) const { return static_cast<double>(cuda::load(memory_[shift_ + i])); }
  std::vector<double> values() const {
    std::vector<double> result(size_);
    for (size_t i = 0; i < size_; ++i) result[i] = (*this)[i];
    return result;
  }

 private:
  static constexpr std::align_val_t kAlignment{16};
  size_t size_, shift_;
  T* memory_;
};

/// Deterministic values of order 1.
inline std::vector<double> wave(size_t count, double salt, double size = 1.7) {
  std::vector<double> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = size * std::sin(static_cast<double>(i) * 12.9898 + salt * 78.233);
  }
  return values;
}

/// What rounding to T leaves of a value.
template <typename T>
constexpr double kTolerance = 4e-6;
template <>
inline constexpr double kTolerance<double> = 1e-13;
template <>
inline constexpr double kTolerance<__nv_bfloat16> = 0x1p-8;
template <>
inline constexpr double kTolerance<__half> = 0x1p-11;
/// What arithmetic in fp32 (fp64) leaves of terms that may cancel each other: a few ulp of the largest.
template <typename T>
constexpr double kCancellation = std::is_same_v<T, double> ? 0x1p-49 : 0x1p-21;

template <typename T>
void expect_close(const std::vector<double>& found, const std::vector<double>& expected, const char* what,
                  double times = 1) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < found.size(); ++i) {
    const double allowed = times * kTolerance<T> * std::fabs(expected[i]) + kCancellation<T> * largest;
    ASSERT_NEAR(found[i], expected[i], allowed) << what << " at " << i;
  }
}

inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

/// How far array number `index` stands off a border of 16 bytes when `shifts` is 1 << index.
inline size_t shift_of(size_t shifts, int index) {
  return shifts >> index & 1;
}

/// Results of `compute(shifts)` with threads in each order, and with each of its arrays in turn where 16-byte
/// accesses do not fit (UBSan sees those): all to the same bits. Returns them.
template <typename F>
std::vector<double> in_any_order(int arrays, F&& compute) {
  using emulation::Order;
  emulation::set_order(Order::kAscending);
  const std::vector<double> expected = compute(size_t{0});
  for (const Order order : {Order::kDescending, Order::kShuffled}) {
    emulation::set_order(order);
    EXPECT_TRUE(same_bits(compute(size_t{0}), expected)) << "order " << static_cast<int>(order);
  }
  emulation::set_order(Order::kAscending);
  for (int index = 0; index < arrays; ++index) {
    EXPECT_TRUE(same_bits(compute(size_t{1} << index), expected)) << "array " << index << " not aligned";
  }
  return expected;
}

/// Parts of a launcher's `largest`, before anything was written to them.
inline std::vector<uint32_t> unwritten_parts(int64_t count) {
  return std::vector<uint32_t>(static_cast<size_t>(count), 0xffffffffU);
}

/// Where kernels of T write them; fp64's do not.
template <typename T>
uint32_t* wanted(std::vector<uint32_t>& parts) {
  return std::is_same_v<T, double> ? nullptr : parts.data();
}

/// The parts' largest is that of the values, in fp32.
template <typename T>
void expect_largest(const std::vector<uint32_t>& parts, const std::vector<double>& values) {
  if (std::is_same_v<T, double>) return;
  float largest = 0;
  for (const double value : values) largest = std::max(largest, std::fabs(static_cast<float>(value)));
  float found;
  const uint32_t bits = *std::max_element(parts.begin(), parts.end());
  std::memcpy(&found, &bits, sizeof(found));
  EXPECT_EQ(found, largest);
}

inline void append(std::vector<double>& to, const std::vector<double>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

inline std::vector<double> part(const std::vector<double>& values, size_t begin, size_t count) {
  return {values.begin() + static_cast<std::ptrdiff_t>(begin),
          values.begin() + static_cast<std::ptrdiff_t>(begin + count)};
}

template <typename T>
constexpr Element kElement = Element::kFloat32;
template <>
inline constexpr Element kElement<double> = Element::kFloat64;
template <>
inline constexpr Element kElement<__nv_bfloat16> = Element::kBFloat16;
template <>
inline constexpr Element kElement<__half> = Element::kFloat16;

using AllElements = ::testing::Types<float, double, __nv_bfloat16, __half>;

/// Calls f<G, W>() for the types of a gradient and of the weights that optimizer kernels are built for.
template <typename F>
void for_gradients_and_weights(F&& f) {
  f.template operator()<float, float>();
  f.template operator()<float, __nv_bfloat16>();
  f.template operator()<__nv_bfloat16, __nv_bfloat16>();
  f.template operator()<float, __half>();
  f.template operator()<__half, __half>();
}

struct ElementName {
  template <typename T>
  static std::string GetName(int) {
    constexpr const char* kNames[] = {"fp32", "fp64", "bf16", "fp16"};
    return kNames[static_cast<int>(kElement<T>)];
  }
};

}  // namespace satune::testing
