#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {
namespace {

/// One thread a pair (i, i + D / 2).
template <typename T>
__global__ void apply_kernel(T* x, int64_t row_stride, const int64_t* positions, const wide_t<T>* cos_table,
                             const wide_t<T>* sin_table, int64_t count, int64_t heads, int64_t half,
                             wide_t<T> sign) {
  using A = wide_t<T>;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t pair = i % half, head = i / half % heads, row = i / half / heads;
    T* low = x + row * row_stride + head * 2 * half + pair;
    T* high = low + half;
    const A c = cos_table[positions[row] * half + pair];
    const A s = sign * sin_table[positions[row] * half + pair];
    const A a = load(*low), b = load(*high);
    *low = store<T>(a * c - b * s);
    *high = store<T>(b * c + a * s);
  }
}

}  // namespace

void rope_apply(Element element, void* x, int64_t row_stride, const int64_t* positions, const void* cos_table,
                const void* sin_table, int64_t rows, int64_t heads, int64_t head_dim, int sign,
                Stream stream) {
  const int64_t count = rows * heads * (head_dim / 2);
  if (count == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    apply_kernel<T><<<blocks_for(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<T*>(x), row_stride, positions, static_cast<const A*>(cos_table),
        static_cast<const A*>(sin_table), count, heads, head_dim / 2, static_cast<A>(sign));
  });
  check_launch("rope_apply");
}

}  // namespace satune::cuda
