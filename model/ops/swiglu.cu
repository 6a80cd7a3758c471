#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {
namespace {

template <typename T>
__global__ void forward_kernel(const T* gate_up, T* act, int64_t count, int64_t ffn) {
  using A = wide_t<T>;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t row = i / ffn, column = i % ffn;
    const A gate = load(gate_up[row * 2 * ffn + column]);
    const A up = load(gate_up[row * 2 * ffn + ffn + column]);
    act[i] = store<T>(gate / (A(1) + exponential(-gate)) * up);
  }
}

template <typename T>
__global__ void backward_kernel(const T* d_act, const T* gate_up, T* d_gate_up, int64_t count, int64_t ffn) {
  using A = wide_t<T>;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t row = i / ffn, column = i % ffn;
    const int64_t at_gate = row * 2 * ffn + column, at_up = at_gate + ffn;
    const A gate = load(gate_up[at_gate]), up = load(gate_up[at_up]), d = load(d_act[i]);
    const A sigmoid = A(1) / (A(1) + exponential(-gate));
    d_gate_up[at_gate] = store<T>(d * up * sigmoid * (A(1) + gate * (A(1) - sigmoid)));
    d_gate_up[at_up] = store<T>(d * gate * sigmoid);
  }
}

}  // namespace

void swiglu_forward(Element element, const void* gate_up, void* act, int64_t rows, int64_t ffn,
                    Stream stream) {
  const int64_t count = rows * ffn;
  if (count == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    forward_kernel<T><<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const T*>(gate_up), static_cast<T*>(act), count, ffn);
  });
  check_launch("swiglu_forward");
}

void swiglu_backward(Element element, const void* d_act, const void* gate_up, void* d_gate_up, int64_t rows,
                     int64_t ffn, Stream stream) {
  const int64_t count = rows * ffn;
  if (count == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    backward_kernel<T><<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const T*>(d_act), static_cast<const T*>(gate_up), static_cast<T*>(d_gate_up), count, ffn);
  });
  check_launch("swiglu_backward");
}

}  // namespace satune::cuda
