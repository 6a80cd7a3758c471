#include "model/ops/cuda_reduce.cuh"

namespace satune::cuda {
namespace {

/// A thread's part of a row: its largest logit, the sum of exp(logit - largest), the first pack that holds
/// it.
template <typename A>
struct Online {
  A max = -static_cast<A>(INFINITY);
  A sum = 0;
  int pack = 0x7fffffff;

  template <typename T, int N>
  __device__ void add(const Pack<T, N>& pack_values, int64_t left, int at) {
    A values[N], top = -static_cast<A>(INFINITY);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      // What does not exist has probability 0. NaN wins no comparison, but reaches the sum.
      values[i] = i < left ? load(pack_values.values[i]) : -static_cast<A>(INFINITY);
      top = values[i] > top ? values[i] : top;
    }
    if (top > max) {
      sum *= exponential<T>(max - top);
      max = top;
      pack = at;
    }
    const A shift = max > -static_cast<A>(INFINITY) ? max : A(0);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exponential<T>(values[i] - shift);
  }
};

// Packs that a thread has under way at once: a row's block is alone on its multiprocessor, so that the rows
// in work fit the second-level cache between the passes. As many as 64 registers hold.
template <typename T, bool kVector>
constexpr int kReadAhead = kVector && sizeof(T) < 8 ? 4 : 1;
template <typename T, bool kVector>
constexpr int kWriteAhead = kVector && sizeof(T) < 8 ? 2 : 1;

/// A block a row. The second pass runs from the end of the row, which the first left in the cache.
template <typename T, bool kVector>
__global__ void __launch_bounds__(1024, 1)
    rows_kernel(T* logits, const int64_t* targets, wide_t<T>* loss, int64_t* correct, bool with_gradient,
                wide_t<T> scale, int vocabulary) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>, kAhead = kReadAhead<T, kVector>, kBehind = kWriteAhead<T, kVector>;
  __shared__ ReduceSpace<A> max_space, sum_space;
  __shared__ ReduceSpace<int> pack_space;
  T* row = logits + int64_t{blockIdx.x} * vocabulary;
  const int threads = static_cast<int>(blockDim.x), first = static_cast<int>(threadIdx.x);
  const int packs = (vocabulary + N - 1) / N;
  const int target = static_cast<int>(targets[blockIdx.x]);
  const A at_target = load(row[target]);

  Online<A> own;
  for (int begin = first; begin < packs; begin += kAhead * threads) {
    Pack<T, N> values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int pack = begin + i * threads;
      if (pack < packs) values[i] = read<kVector, N>(row + pack * N, vocabulary - pack * N);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int pack = begin + i * threads;
      if (pack < packs) own.add(values[i], kVector ? N : vocabulary - pack * N, pack);
    }
  }
  const A max = reduce_block<Max>(own.max, max_space);
  const int pack_of_max =
      reduce_block<Min>(own.max == max ? own.pack : static_cast<int>(0x7fffffff), pack_space);
  // A row of -inf alone: NaN, as everywhere.
  const A sum = reduce_block<Sum>(own.sum * exponential<T>(own.max - max), sum_space);
  if (first == 0) {
    bool is_argmax = at_target == max && pack_of_max == target / N;
    for (int i = target / N * N; i < target; ++i) is_argmax = is_argmax && !(load(row[i]) == max);
    loss[blockIdx.x] = logarithm(sum) - (at_target - max);
    correct[blockIdx.x] = is_argmax ? 1 : 0;
  }
  if (!with_gradient) return;
  __syncthreads();  // the row is about to change

  const A factor = scale / sum;
  const int rounds = (packs + kBehind * threads - 1) / (kBehind * threads);
  for (int begin = first + (rounds - 1) * kBehind * threads; begin >= 0; begin -= kBehind * threads) {
    Pack<T, N> values[kBehind];
#pragma unroll
    for (int i = 0; i < kBehind; ++i) {
      const int pack = begin + i * threads;
      if (pack < packs) values[i] = read<kVector, N>(row + pack * N, vocabulary - pack * N);
    }
#pragma unroll
    for (int i = 0; i < kBehind; ++i) {
      const int pack = begin + i * threads;
      if (pack >= packs) continue;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A gradient = exponential<T>(load(values[i].values[j]) - max) * factor;
        values[i].values[j] = store<T>(pack * N + j == target ? gradient - scale : gradient);
      }
      write<kVector, N>(row + pack * N, values[i], vocabulary - pack * N);
    }
  }
}

}  // namespace

void cross_entropy_rows(Element element, void* logits, const int64_t* targets, void* loss, int64_t* correct,
                        const double* scale, int64_t rows, int64_t vocabulary, Stream stream) {
  if (rows == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    auto* typed = static_cast<T*>(logits);
    const auto kernel =
        fits_packs<kPack<T>>(typed, vocabulary) ? rows_kernel<T, true> : rows_kernel<T, false>;
    launch("cross_entropy_rows", kernel, dim3(static_cast<unsigned>(rows)),
           threads_for_row(divide_up(vocabulary, kPack<T>), 4, 1024), stream, typed, targets,
           static_cast<A*>(loss), correct, scale != nullptr, static_cast<A>(scale != nullptr ? *scale : 0.0),
           static_cast<int>(vocabulary));
  });
}

}  // namespace satune::cuda
