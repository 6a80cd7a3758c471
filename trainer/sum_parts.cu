#include "model/ops/cuda_elements.cuh"
#include "trainer/cuda_kernels.h"

namespace satune::cuda {
namespace {

constexpr int N = 4;
constexpr int kMostParts = 16;  // of one launch

template <typename T>
struct Parts {
  const T* values[kMostParts];
  int count;
};

template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Parts<T> parts, wide_t<T>* sums, int64_t n, bool accumulate) {
  using A = wide_t<T>;
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N, left = n - at;
  if (left <= 0) return;
  Pack<A, N> sum;
  if (accumulate) {
    sum = read<kVector, N>(sums + at, left);
  } else {
    const auto first = read<kVector, N>(parts.values[0] + at, left);
#pragma unroll
    for (int i = 0; i < N; ++i) sum.values[i] = load(first.values[i]);
  }
  for (int part = accumulate ? 0 : 1; part < parts.count; ++part) {
    const auto addend = read<kVector, N>(parts.values[part] + at, left);
#pragma unroll
    for (int i = 0; i < N; ++i) sum.values[i] += load(addend.values[i]);
  }
  write<kVector, N>(sums + at, sum, left);
}

}  // namespace

void sum_ranks(Element element, const void* const* parts, int64_t count, void* sum, int64_t n,
               bool accumulate, Stream stream) {
  if (n == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    auto* sums = static_cast<wide_t<T>*>(sum);
    for (int64_t first = 0; first < count; first += kMostParts) {
      Parts<T> group{};
      group.count = static_cast<int>(std::min<int64_t>(kMostParts, count - first));
      bool vector = fits_packs<N>(sums, n);
      for (int i = 0; i < group.count; ++i) {
        group.values[i] = static_cast<const T*>(parts[first + i]);
        vector = vector && fits_packs<N>(group.values[i], n);
      }
      launch("sum_ranks", vector ? sum_kernel<T, true> : sum_kernel<T, false>,
             dim3(static_cast<unsigned>(divide_up(n, int64_t{kThreads} * N))), kThreads, stream, group, sums,
             n, accumulate || first > 0);
    }
  });
}

}  // namespace satune::cuda
