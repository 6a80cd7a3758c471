// Reductions over the threads of a block, in an order that depends on nothing but their number.
#pragma once

#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

struct Sum {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};
/// Of numbers; NaN does not win.
struct Max {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return b > a ? b : a;
  }
};
struct Min {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return b < a ? b : a;
  }
};

/// Every lane receives the same bits: combining two values is symmetric.
template <typename Combine, typename V>
__device__ inline V reduce_warp(V value, Combine combine = {}) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffU, value, lanes));
  }
  return value;
}

/// Shared memory of one reduction. A block may use it again once all of its threads have passed a barrier
/// behind the call before; two of them in turn need no other barrier than that of the calls themselves.
template <typename V>
struct ReduceSpace {
  V of_warp[kMaxWarps];
};

/// Over all threads of a block of whole warps; every thread receives the same bits. One barrier.
template <typename Combine, typename V>
__device__ inline V reduce_block(V value, ReduceSpace<V>& space, Combine combine = {}) {
  value = reduce_warp<Combine>(value, combine);
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (threadIdx.x % kWarp == 0) space.of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  V result = space.of_warp[0];
  for (int warp = 1; warp < warps; ++warp) result = combine(result, space.of_warp[warp]);
  return result;
}

/// Bits of |x| as fp32, which order as the numbers do, infinity and NaN above all.
template <typename T>
__device__ inline unsigned magnitude(T x) {
  return __float_as_uint(static_cast<float>(load(x))) & 0x7fffffffU;
}

template <typename T, int N>
__device__ inline unsigned largest_magnitude(const Pack<T, N>& pack) {
  unsigned largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) largest = Max()(largest, magnitude(pack.values[i]));
  return largest;
}

/// Whether kernels give the largest magnitudes of results of this type: not of fp64, for lack of registers.
template <typename T>
constexpr bool kGivesLargest = sizeof(T) <= 4;

/// Writes the largest of the block's threads to its part (cuda_kernels.h, fp8_largest_parts()). By all
/// threads.
__device__ inline void write_largest(unsigned largest, unsigned* parts, unsigned part) {
  __shared__ ReduceSpace<unsigned> space;
  largest = reduce_block<Max>(largest, space);
  if (threadIdx.x == 0) parts[part] = largest;
}

/// Threads of a block that handles a row of `packs`, `each` of them a thread: whole warps, at most `most`.
inline unsigned threads_for_row(int64_t packs, int64_t each, int64_t most) {
  const int64_t warps = divide_up(packs, each * kWarp);
  return static_cast<unsigned>(std::clamp<int64_t>(warps, 1, most / kWarp) * kWarp);
}

}  // namespace satune::cuda
