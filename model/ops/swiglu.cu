#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {
namespace {

/// Rows blockIdx.y, blockIdx.y + gridDim.y, ...; a pack of columns a thread.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* gate_up, T* act, int64_t rows, int ffn) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * N, left = ffn - column;
  if (left <= 0) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
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
  }
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* d_act, const T* gate_up, T* d_gate_up, int64_t rows, int ffn) {
  using A = wide_t<T>;
  constexpr int N = kPack<T>;
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * N, left = ffn - column;
  if (left <= 0) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
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
  }
}

template <typename T>
dim3 grid(int64_t rows, int64_t ffn) {
  return dim3(static_cast<unsigned>(divide_up(ffn, int64_t{kThreads} * kPack<T>)),
              static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
}

}  // namespace

void swiglu_forward(Element element, const void* gate_up, void* act, int64_t rows, int64_t ffn,
                    Stream stream) {
  if (rows * ffn == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto* in = static_cast<const T*>(gate_up);
    auto* out = static_cast<T*>(act);
    const bool vector = fits_packs<kPack<T>>(in, ffn) && fits_packs<kPack<T>>(out, ffn);
    launch("swiglu_forward", vector ? forward_kernel<T, true> : forward_kernel<T, false>, grid<T>(rows, ffn),
           kThreads, stream, in, out, rows, static_cast<int>(ffn));
  });
}

void swiglu_backward(Element element, const void* d_act, const void* gate_up, void* d_gate_up, int64_t rows,
                     int64_t ffn, Stream stream) {
  if (rows * ffn == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto *upstream = static_cast<const T*>(d_act), *in = static_cast<const T*>(gate_up);
    auto* out = static_cast<T*>(d_gate_up);
    const bool vector = fits_packs<kPack<T>>(upstream, ffn) && fits_packs<kPack<T>>(in, ffn) &&
                        fits_packs<kPack<T>>(out, ffn);
    launch("swiglu_backward", vector ? backward_kernel<T, true> : backward_kernel<T, false>,
           grid<T>(rows, ffn), kThreads, stream, upstream, in, out, rows, static_cast<int>(ffn));
  });
}

}  // namespace satune::cuda
