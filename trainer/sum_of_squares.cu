#include "model/ops/cuda_reduce.cuh"
#include "trainer/cuda_kernels.h"

namespace satune::cuda {
namespace {

constexpr int kElementsPerBlock = 32768;
constexpr int kPartThreads = 1024;

/// The squares of fp32 and narrower values are exact in fp64: only the additions round.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads) squares_kernel(const T* values, int64_t n, double* parts) {
  constexpr int N = kPack<T>;
  __shared__ ReduceSpace<double> space;
  const int64_t begin = int64_t{blockIdx.x} * kElementsPerBlock;
  const auto count = static_cast<int>(n - begin < kElementsPerBlock ? n - begin : kElementsPerBlock);
  double sum = 0;
  const auto add = [&](const Pack<T, N>& pack) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const double value = static_cast<double>(load(pack.values[i]));
      sum += value * value;
    }
  };
  int at = static_cast<int>(threadIdx.x) * N;
#pragma unroll 4
  for (; at + N <= count; at += kThreads * N) add(read<kVector, N>(values + begin + at, N));
  if (at < count) add(read<false, N>(values + begin + at, count - at));
  sum = reduce_block<Sum>(sum, space);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = sum;
    count_write(sizeof(double));
  }
}

__global__ void __launch_bounds__(kPartThreads)
    parts_kernel(const double* parts, int64_t count, double* out) {
  __shared__ ReduceSpace<double> space;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kPartThreads) {
    sum += parts[i];
    count_read(sizeof(double));
  }
  sum = reduce_block<Sum>(sum, space);
  if (threadIdx.x == 0) {
    *out = sum;
    count_write(sizeof(double));
  }
}

}  // namespace

int64_t sum_of_squares_parts(int64_t n) {
  return divide_up(n, kElementsPerBlock);
}

void sum_of_squares(Element element, const void* values, int64_t n, double* parts, Stream stream) {
  if (n == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto* typed = static_cast<const T*>(values);
    launch("sum_of_squares",
           fits_packs<kPack<T>>(typed, 0) ? squares_kernel<T, true> : squares_kernel<T, false>,
           dim3(static_cast<unsigned>(sum_of_squares_parts(n))), kThreads, stream, typed, n, parts);
  });
}

void sum_of_parts(const double* parts, int64_t count, double* sum, Stream stream) {
  launch("sum_of_parts", parts_kernel, dim3(1), kPartThreads, stream, parts, count, sum);
}

}  // namespace satune::cuda
