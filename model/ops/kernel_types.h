// Element types of the CPU kernels: loads widen to the accumulation type, stores round to nearest even.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>

/// Before a loop whose iterations touch nothing of each other. Without it the compiler guards its vectors by
/// comparisons of addresses, which send neighbouring halves of a row to a scalar loop.
#if defined(__clang__)
#define SATUNE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SATUNE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace satune::kernels {

/// fp64 accumulates in fp64, everything else in fp32.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

inline float load(float value) {
  return value;
}
inline double load(double value) {
  return value;
}
inline float load(c10::BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16);
}
inline float load(c10::Half value) {
  return static_cast<float>(value);
}

template <typename T>
inline T store(accumulate_t<T> value) {
  return static_cast<T>(value);
}
/// Branch-free, so that loops over it vectorise; NaN stays NaN.
template <>
inline c10::BFloat16 store<c10::BFloat16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t result = value != value ? 0x7fc0u : rounded;
  return c10::BFloat16(static_cast<uint16_t>(result), c10::BFloat16::from_bits());
}

}  // namespace satune::kernels

/// INSTANTIATE(T) for every element type that the kernels are compiled for.
#define SATUNE_FOR_EACH_TYPE(INSTANTIATE) \
  INSTANTIATE(float)                      \
  INSTANTIATE(double)                     \
  INSTANTIATE(c10::BFloat16)              \
  INSTANTIATE(c10::Half)
