#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {
namespace {

// Heads that one thread rotates by the same angles.
constexpr int kHeads = 4;

template <typename T>
struct RopeArrays {
  T* x;
  int64_t row_stride;
  const int64_t* positions;
  const wide_t<T>*cos_table, *sin_table;
};

/// Rows blockIdx.y, blockIdx.y + gridDim.y, ...; a thread has the elements i, ..., i + N - 1 of kHeads heads
/// and those half a head further on.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(RopeArrays<T> arrays, int64_t rows, int heads, int half, wide_t<T> sign) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  const int packs = (half + N - 1) / N;
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int first_head = item / packs * kHeads, at = item % packs * N, left = half - at;
  if (first_head >= heads) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t angle = arrays.positions[row] * half + at;
    const auto cos = read<kVector, N>(arrays.cos_table + angle, left);
    const auto sin = read<kVector, N>(arrays.sin_table + angle, left);
#pragma unroll
    for (int head = first_head; head < first_head + kHeads; ++head) {
      if (head >= heads) break;
      T* low = arrays.x + row * arrays.row_stride + int64_t{head} * 2 * half + at;
      auto a = read<kVector, N>(low, left), b = read<kVector, N>(low + half, left);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A c = cos.values[i], s = sign * sin.values[i];
        const A from_low = load(a.values[i]), from_high = load(b.values[i]);
        a.values[i] = store<T>(from_low * c - from_high * s);
        b.values[i] = store<T>(from_high * c + from_low * s);
      }
      write<kVector, N>(low, a, left);
      write<kVector, N>(low + half, b, left);
    }
  }
}

}  // namespace

void rope_apply(Element element, void* x, int64_t row_stride, const int64_t* positions, const void* cos_table,
                const void* sin_table, int64_t rows, int64_t heads, int64_t head_dim, int sign,
                Stream stream) {
  const int64_t half = head_dim / 2;
  if (rows * heads * half == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    constexpr int N = kPack<T>;
    const RopeArrays<T> arrays{static_cast<T*>(x), row_stride, positions, static_cast<const A*>(cos_table),
                               static_cast<const A*>(sin_table)};
    const bool vector = fits_packs<N>(arrays.x, half) && row_stride % N == 0 &&
                        fits_packs<N>(arrays.cos_table, half) && fits_packs<N>(arrays.sin_table, half);
    const int64_t items = divide_up(half, N) * divide_up(heads, kHeads);
    launch("rope_apply", vector ? apply_kernel<T, true> : apply_kernel<T, false>,
           dim3(static_cast<unsigned>(divide_up(items, kThreads)),
                static_cast<unsigned>(std::min<int64_t>(rows, 65535))),
           kThreads, stream, arrays, rows, static_cast<int>(heads), static_cast<int>(half),
           static_cast<A>(sign));
  });
}

}  // namespace satune::cuda
