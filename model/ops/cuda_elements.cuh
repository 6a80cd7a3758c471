// What the .cu files share: wide arithmetic on narrow elements, 16-byte access, dispatch, and launches. They
// are also compiled as C++ and run on the CPU, thread by thread, in tests (tests/cuda_emulation).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "model/ops/cuda_kernels.h"

namespace satune::cuda {

template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <typename T>
using wide_t = typename Wide<T>::type;

__device__ inline float load(float value) {
  return value;
}
__device__ inline double load(double value) {
  return value;
}
__device__ inline float load(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
__device__ inline float load(__half value) {
  return __half2float(value);
}

template <typename T>
__device__ inline T store(wide_t<T> value) {
  return static_cast<T>(value);
}
template <>
__device__ inline __nv_bfloat16 store<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half store<__half>(float value) {
  return __float2half_rn(value);
}

/// Of 16-bit elements: within 2 + |x| / 2^19 ulp of fp32, a fraction of what their rounding takes.
template <typename T>
__device__ inline float exponential(float x) {
  if constexpr (sizeof(T) == 2) {
    return __expf(x);
  } else {
    return expf(x);
  }
}
template <typename T>
__device__ inline double exponential(double x) {
  return exp(x);
}
__device__ inline float logarithm(float x) {
  return logf(x);
}
__device__ inline double logarithm(double x) {
  return log(x);
}
__device__ inline float square_root(float x) {
  return sqrtf(x);
}
__device__ inline double square_root(double x) {
  return sqrt(x);
}
/// a / b for finite a; of 16-bit elements within 2 ulp of fp32, and 0 where b is beyond 2^126.
template <typename T>
__device__ inline float quotient(float a, float b) {
  if constexpr (sizeof(T) == 2) {
    return __fdividef(a, b);
  } else {
    return a / b;
  }
}
template <typename T>
__device__ inline double quotient(double a, double b) {
  return a / b;
}

/// Elements that one access moves; where there are several in an aligned place, in one instruction of 16
/// bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T values[N];
};
/// Elements of 16 bytes.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

#ifdef __CUDACC__
__device__ inline void count_read(int64_t) {}
__device__ inline void count_write(int64_t) {}
#else
inline void count_read(int64_t bytes) {
  emulation::traffic().read += bytes;
}
inline void count_write(int64_t bytes) {
  emulation::traffic().written += bytes;
}
#endif

/// N elements from `from` on. kVector: all exist, and `from` is aligned to the pack. Otherwise the first
/// `left` exist, and the others are 0: the same arithmetic follows, so that results do not depend on
/// alignment.
template <bool kVector, int N, typename T>
__device__ inline Pack<T, N> read(const T* from, int64_t left) {
  Pack<T, N> pack;
  if constexpr (kVector) {
    pack = *reinterpret_cast<const Pack<T, N>*>(from);
    count_read(sizeof(T) * N);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) pack.values[i] = i < left ? from[i] : T{};
    count_read(sizeof(T) * (left < N ? left : N));
  }
  return pack;
}

/// Writes the first `left` elements, or all with kVector.
template <bool kVector, int N, typename T>
__device__ inline void write(T* to, const Pack<T, N>& pack, int64_t left) {
  if constexpr (kVector) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
    count_write(sizeof(T) * N);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < left) to[i] = pack.values[i];
    }
    count_write(sizeof(T) * (left < N ? left : N));
  }
}

/// Whether rows of `width` elements that begin here can be moved N at a time. Null pointers count as aligned.
template <int N, typename T>
bool fits_packs(const T* rows, int64_t width) {
  return width % N == 0 && reinterpret_cast<uintptr_t>(rows) % alignof(Pack<T, N>) == 0;
}

/// Calls f(T{}) with the element's type.
template <typename F>
void dispatch(Element element, F&& f) {
  switch (element) {
    case Element::kFloat32:
      return f(float{});
    case Element::kFloat64:
      return f(double{});
    case Element::kBFloat16:
      return f(__nv_bfloat16{});
    case Element::kFloat16:
      return f(__half{});
  }
}

constexpr int kThreads = 256;

inline int64_t divide_up(int64_t count, int64_t by) {
  return (count + by - 1) / by;
}

/// Blocks for a grid-stride loop over `count` elements.
inline unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>(divide_up(count, kThreads), 65535));
}

/// Runs `kernel` on `blocks` blocks of `threads` threads. Throws std::runtime_error with CUDA's message, and
/// `name` before it, when the launch fails.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, unsigned threads, Stream stream,
            Arguments... arguments) {
#ifdef __CUDACC__
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
  }
#else
  emulation::launch(name, blocks, threads, stream, [=] { kernel(arguments...); });
#endif
}

}  // namespace satune::cuda
