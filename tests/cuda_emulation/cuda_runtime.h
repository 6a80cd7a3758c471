// Stands in for CUDA's header of this name where a .cu file is compiled as C++: see emulator.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/cuda_emulation/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Of one block at a time; what the block before left stands in it, as on a card.
#define __shared__ static

using dim3 = satune::emulation::Dim;
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "no error";
}

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  satune::emulation::barrier(file, line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const unsigned source = satune::emulation::lane() ^ static_cast<unsigned>(lane_mask);
  bits = satune::emulation::exchange(mask, bits, source, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float __expf(float x) {
  return expf(x);
}
/// As CUDA's guide has it: 0 for divisors beyond 2^126.
inline float __fdividef(float x, float y) {
  if (std::isfinite(y) && std::fabs(y) > 0x1p126F) return std::isfinite(x) ? 0.0F : NAN;
  return x / y;
}
