#include "model/ops/cuda_reduce.cuh"

namespace satune::cuda {
namespace {

// Of the result's largest magnitudes: one block goes through all of them.
constexpr int64_t kMostParts = 2048;

/// Rows blockIdx.y, blockIdx.y + gridDim.y, ...; a pack of columns a thread.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* gate_up, T* act, unsigned* largest, int64_t rows, int ffn) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * N, left = ffn - column;
  unsigned most = 0;
  for (int64_t row = blockIdx.y; row < rows && left > 0; row += gridDim.y) {
    const T* from = gate_up + row * 2 * ffn + column;
    const auto gate = read<kVector, N>(from, left), up = read<kVector, N>(from + ffn, left);
    Pack<T, N> result;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A g = load(gate.values[i]);
      result.values[i] =
          store<T>(quotient<T>(g, A(1) + exponential<T>(-g)) * static_cast<A>(load(up.values[i])));
    }
    write<kVector, N>(act + row * ffn + column, result, left);
    if (kGivesLargest<T> && largest != nullptr) most = Max()(most, largest_magnitude(result));
  }
  if (kGivesLargest<T> && largest != nullptr)
    write_largest(most, largest, blockIdx.y * gridDim.x + blockIdx.x);
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads) backward_kernel(const T* d_act, const T* gate_up, T* d_gate_up,
                                                            unsigned* largest, int64_t rows, int ffn) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * N, left = ffn - column;
  unsigned most = 0;
  for (int64_t row = blockIdx.y; row < rows && left > 0; row += gridDim.y) {
    const int64_t at = row * 2 * ffn + column;
    const auto gate = read<kVector, N>(gate_up + at, left), up = read<kVector, N>(gate_up + at + ffn, left);
    const auto upstream = read<kVector, N>(d_act + row * ffn + column, left);
    Pack<T, N> d_gate, d_up;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A g = load(gate.values[i]), u = load(up.values[i]), d = load(upstream.values[i]);
      const A sigmoid = quotient<T>(A(1), A(1) + exponential<T>(-g));
      d_gate.values[i] = store<T>(d * u * sigmoid * (A(1) + g * (A(1) - sigmoid)));
      d_up.values[i] = store<T>(d * g * sigmoid);
    }
    write<kVector, N>(d_gate_up + at, d_gate, left);
    write<kVector, N>(d_gate_up + at + ffn, d_up, left);
    if (kGivesLargest<T> && largest != nullptr)
      most = Max()(most, Max()(largest_magnitude(d_gate), largest_magnitude(d_up)));
  }
  if (kGivesLargest<T> && largest != nullptr)
    write_largest(most, largest, blockIdx.y * gridDim.x + blockIdx.x);
}

template <typename T>
dim3 grid(int64_t rows, int64_t ffn, bool with_parts) {
  const int64_t across = divide_up(ffn, int64_t{kThreads} * kPack<T>);
  const int64_t down = with_parts ? std::max<int64_t>(1, kMostParts / across) : 65535;
  return dim3(static_cast<unsigned>(across), static_cast<unsigned>(std::min(rows, down)));
}

}  // namespace

int64_t swiglu_largest_parts(Element element, int64_t rows, int64_t ffn) {
  int64_t parts = 0;
  dispatch(element, [&](auto zero) {
    const dim3 blocks = grid<decltype(zero)>(rows, ffn, true);
    parts = int64_t{blocks.x} * blocks.y;
  });
  return parts;
}

void swiglu_forward(Element element, const void* gate_up, void* act, uint32_t* largest, int64_t rows,
                    int64_t ffn, Stream stream) {
  if (rows * ffn == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto* in = static_cast<const T*>(gate_up);
    auto* out = static_cast<T*>(act);
    const bool vector = fits_packs<kPack<T>>(in, ffn) && fits_packs<kPack<T>>(out, ffn);
    launch("swiglu_forward", vector ? forward_kernel<T, true> : forward_kernel<T, false>,
           grid<T>(rows, ffn, largest != nullptr), kThreads, stream, in, out, largest, rows,
           static_cast<int>(ffn));
  });
}

void swiglu_backward(Element element, const void* d_act, const void* gate_up, void* d_gate_up,
                     uint32_t* largest, int64_t rows, int64_t ffn, Stream stream) {
  if (rows * ffn == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto *upstream = static_cast<const T*>(d_act), *in = static_cast<const T*>(gate_up);
    auto* out = static_cast<T*>(d_gate_up);
    const bool vector = fits_packs<kPack<T>>(upstream, ffn) && fits_packs<kPack<T>>(in, ffn) &&
                        fits_packs<kPack<T>>(out, ffn);
    launch("swiglu_backward", vector ? backward_kernel<T, true> : backward_kernel<T, false>,
           grid<T>(rows, ffn, largest != nullptr), kThreads, stream, upstream, in, out, largest, rows,
           static_cast<int>(ffn));
  });
}

}  // namespace satune::cuda
