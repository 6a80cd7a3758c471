#include "model/ops/cuda_reduce.cuh"

namespace satune::cuda {
namespace {

// Packs of a row that a thread keeps in registers, so that no array is read twice. Rows too wide for that,
// and those that 16-byte accesses do not fit, are read again; every thread has the same elements either way.
constexpr int kKept = 2;
constexpr int kForwardThreads = 1024, kBackwardThreads = 512;
// Each block sums the gradient of the weight over its rows: these many partial sums are added at the end.
constexpr int kMostBlocks = 512;

/// Calls f(slot, element) for the packs of a row that belong to this thread.
template <int N, bool kVector, typename F>
__device__ inline void for_own_packs(int width, F&& f) {
  const int stride = static_cast<int>(blockDim.x) * N, first = static_cast<int>(threadIdx.x) * N;
  if constexpr (kVector) {
#pragma unroll
    for (int slot = 0; slot < kKept; ++slot) {
      if (first + slot * stride < width) f(slot, first + slot * stride);
    }
  } else {
    for (int at = first; at < width; at += stride) f(0, at);
  }
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(const T* x, const T* weight, T* y, wide_t<T>* rstd, unsigned* largest, int width,
                   wide_t<T> eps) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  __shared__ ReduceSpace<A> space;
  const T* row = x + int64_t{blockIdx.x} * width;
  T* out = y + int64_t{blockIdx.x} * width;
  Pack<T, N> kept[kKept];
  A squares = 0;
  for_own_packs<N, kVector>(width, [&](int slot, int at) {
    kept[slot] = read<kVector, N>(row + at, width - at);
#pragma unroll
    for (int i = 0; i < N; ++i) squares += load(kept[slot].values[i]) * load(kept[slot].values[i]);
  });
  squares = reduce_block<Sum>(squares, space);
  const A scale = A(1) / square_root(squares / static_cast<A>(width) + eps);
  if (threadIdx.x == 0) {
    rstd[blockIdx.x] = scale;
    count_write(sizeof(A));
  }
  unsigned most = 0;
  for_own_packs<N, kVector>(width, [&](int slot, int at) {
    const auto w = read<kVector, N>(weight + at, width - at);
    Pack<T, N> result = kVector ? kept[slot] : read<kVector, N>(row + at, width - at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A normed = load(store<T>(load(result.values[i]) * scale));
      result.values[i] = store<T>(normed * load(w.values[i]));
    }
    write<kVector, N>(out + at, result, width - at);
    if (kGivesLargest<T> && largest != nullptr) most = Max()(most, largest_magnitude(result));
  });
  if (kGivesLargest<T> && largest != nullptr) write_largest(most, largest, blockIdx.x);
}

template <typename T>
struct BackwardArrays {
  const T *d_y, *x, *weight;
  const wide_t<T>* rstd;
  const T* residual;  ///< or null
  T* d_x;
  unsigned* largest;   ///< of each block, or null
  wide_t<T>* partial;  ///< [blocks, width], or null
};

/// Rows blockIdx.x, blockIdx.x + gridDim.x, ... Each thread keeps its part of the weight and of its gradient.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(BackwardArrays<T> arrays, int64_t rows, int width) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  __shared__ ReduceSpace<A> spaces[2];  // by turns, so that one barrier a row is enough
  Pack<T, N> weight[kKept];
  A d_weight[kKept][N] = {};
  A* partial = arrays.partial == nullptr ? nullptr : arrays.partial + int64_t{blockIdx.x} * width;
  for_own_packs<N, kVector>(width, [&](int slot, int at) {
    if constexpr (kVector) weight[slot] = read<kVector, N>(arrays.weight + at, width - at);
  });
  int turn = 0;
  unsigned most = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const T* d_y = arrays.d_y + row * width;
    const T* x = arrays.x + row * width;
    Pack<T, N> kept_d[kKept], kept_x[kKept];
    A dot = 0;
    for_own_packs<N, kVector>(width, [&](int slot, int at) {
      kept_d[slot] = read<kVector, N>(d_y + at, width - at);
      kept_x[slot] = read<kVector, N>(x + at, width - at);
      if constexpr (!kVector) weight[slot] = read<kVector, N>(arrays.weight + at, width - at);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        dot += load(kept_d[slot].values[i]) * load(weight[slot].values[i]) * load(kept_x[slot].values[i]);
      }
    });
    dot = reduce_block<Sum>(dot, spaces[turn]);
    const A scale = arrays.rstd[row];
    if (threadIdx.x == 0) count_read(sizeof(A));
    const A correction = dot * scale * scale * scale / static_cast<A>(width);
    for_own_packs<N, kVector>(width, [&](int slot, int at) {
      const int left = width - at;
      if constexpr (!kVector) {
        kept_d[slot] = read<kVector, N>(d_y + at, left);
        kept_x[slot] = read<kVector, N>(x + at, left);
        weight[slot] = read<kVector, N>(arrays.weight + at, left);
      }
      Pack<T, N> added{};
      if (arrays.residual != nullptr) {
        added = read<kVector, N>(arrays.residual + row * width + at, left);
      }
      Pack<T, N> d_x;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A d = load(kept_d[slot].values[i]), value = load(kept_x[slot].values[i]);
        const A gradient = d * load(weight[slot].values[i]) * scale - value * correction;
        d_x.values[i] = store<T>(load(added.values[i]) + gradient);
        const A product = d * load(store<T>(value * scale));
        if constexpr (kVector) {
          d_weight[slot][i] += product;
        } else if (partial != nullptr && i < left) {
          partial[at + i] = row == blockIdx.x ? product : partial[at + i] + product;
        }
      }
      write<kVector, N>(arrays.d_x + row * width + at, d_x, left);
      if (kGivesLargest<T> && arrays.largest != nullptr) most = Max()(most, largest_magnitude(d_x));
    });
  }
  if (kGivesLargest<T> && arrays.largest != nullptr) write_largest(most, arrays.largest, blockIdx.x);
  if constexpr (kVector) {
    if (partial == nullptr) return;
    for_own_packs<N, kVector>(width, [&](int slot, int at) {
      Pack<A, N> sums;
#pragma unroll
      for (int i = 0; i < N; ++i) sums.values[i] = d_weight[slot][i];
      write<kVector, N>(partial + at, sums, N);
    });
  }
}

constexpr int kColumns = 32, kParts = 8;

/// d_weight = or += the sum of partial [blocks, width] over blocks: kParts interleaved sums a column, then
/// those in order.
template <typename A, typename G>
__global__ void __launch_bounds__(kColumns* kParts)
    sum_partial_kernel(const A* partial, int blocks, int width, G* d_weight, bool accumulate) {
  __shared__ A sums[kParts][kColumns];
  const int lane = static_cast<int>(threadIdx.x) % kColumns, part = static_cast<int>(threadIdx.x) / kColumns;
  const int column = static_cast<int>(blockIdx.x) * kColumns + lane;
  A sum = 0;
  if (column < width) {
#pragma unroll 4
    for (int block = part; block < blocks; block += kParts) {
      sum += partial[int64_t{block} * width + column];
      count_read(sizeof(A));
    }
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part != 0 || column >= width) return;
  for (int other = 1; other < kParts; ++other) sum += sums[other][lane];
  using W = wide_t<G>;
  const W before = accumulate ? load(d_weight[column]) : W(0);
  d_weight[column] = store<G>(accumulate ? static_cast<W>(before + sum) : static_cast<W>(sum));
  count_write(sizeof(G));
}

template <typename A>
void sum_partial(const A* partial, int blocks, int64_t width, Element element, void* d_weight,
                 bool accumulate, Stream stream) {
  dispatch(element, [&](auto zero) {
    using G = decltype(zero);
    launch("rms_norm_backward", sum_partial_kernel<A, G>,
           dim3(static_cast<unsigned>(divide_up(width, kColumns))), kColumns * kParts, stream, partial,
           blocks, static_cast<int>(width), static_cast<G*>(d_weight), accumulate);
  });
}

/// Whether so many threads can keep rows of this width in registers.
template <typename T>
bool keeps(int64_t width, int64_t threads) {
  return width <= threads * kKept * kPack<T>;
}

}  // namespace

void rms_norm_forward(Element element, const void* x, const void* weight, void* y, void* rstd,
                      uint32_t* largest, int64_t rows, int64_t width, double eps, Stream stream) {
  if (rows == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    constexpr int N = kPack<T>;
    const auto *in = static_cast<const T*>(x), *w = static_cast<const T*>(weight);
    auto* out = static_cast<T*>(y);
    const bool vector = keeps<T>(width, kForwardThreads) && fits_packs<N>(in, width) &&
                        fits_packs<N>(w, width) && fits_packs<N>(out, width);
    launch("rms_norm_forward", vector ? forward_kernel<T, true> : forward_kernel<T, false>,
           dim3(static_cast<unsigned>(rows)), threads_for_row(divide_up(width, N), kKept, kForwardThreads),
           stream, in, w, out, static_cast<A*>(rstd), largest, static_cast<int>(width), static_cast<A>(eps));
  });
}

int64_t rms_norm_partial_rows(int64_t rows) {
  return std::min<int64_t>(rows, kMostBlocks);
}

void rms_norm_backward(Element element, const void* d_y, const void* x, const void* weight, const void* rstd,
                       const void* residual, void* d_x, uint32_t* largest, void* partial,
                       const WeightGradient& d_weight, int64_t rows, int64_t width, Stream stream) {
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    constexpr int N = kPack<T>;
    const BackwardArrays<T> arrays{static_cast<const T*>(d_y),
                                   static_cast<const T*>(x),
                                   static_cast<const T*>(weight),
                                   static_cast<const A*>(rstd),
                                   static_cast<const T*>(residual),
                                   static_cast<T*>(d_x),
                                   largest,
                                   static_cast<A*>(partial)};
    const bool vector = keeps<T>(width, kBackwardThreads) && fits_packs<N>(arrays.d_y, width) &&
                        fits_packs<N>(arrays.x, width) && fits_packs<N>(arrays.weight, width) &&
                        fits_packs<N>(arrays.residual, width) && fits_packs<N>(arrays.d_x, width) &&
                        fits_packs<N>(arrays.partial, width);
    const int64_t blocks = rms_norm_partial_rows(rows);
    if (rows > 0) {
      launch("rms_norm_backward", vector ? backward_kernel<T, true> : backward_kernel<T, false>,
             dim3(static_cast<unsigned>(blocks)),
             threads_for_row(divide_up(width, N), kKept, kBackwardThreads), stream, arrays, rows,
             static_cast<int>(width));
    }
    if (partial == nullptr) return;
    sum_partial<A>(arrays.partial, static_cast<int>(blocks), width, d_weight.element, d_weight.values,
                   d_weight.accumulate, stream);
  });
}

}  // namespace satune::cuda
