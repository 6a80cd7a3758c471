#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {
namespace {

constexpr int kColumnThreads = 128;
// Rows of a token that are under way at once; they are added in their order.
constexpr int kReadAhead = 8;

/// Blocks (place, columns). That of a token's first place adds all its rows, the others have nothing to do:
/// the host need not know how many tokens differ.
template <typename T, typename G, bool kVector>
__global__ void __launch_bounds__(kColumnThreads)
    backward_kernel(const T* d_out, const int64_t* sorted_tokens, const int64_t* places, G* d_weight,
                    int64_t rows, int width) {
  using A = wide_t<T>;
  using W = wide_t<G>;
  constexpr int N = kPack<T>;
  const int64_t first = blockIdx.x, token = sorted_tokens[first];
  if (first > 0 && sorted_tokens[first - 1] == token) return;
  const int column = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * N, left = width - column;
  if (left <= 0) return;
  A sum[N] = {};
  bool same = true;
  for (int64_t begin = first; same; begin += kReadAhead) {
    Pack<T, N> values[kReadAhead];
    bool present[kReadAhead];
#pragma unroll
    for (int i = 0; i < kReadAhead; ++i) {
      same = same && begin + i < rows && sorted_tokens[begin + i] == token;
      present[i] = same;
      if (same) values[i] = read<kVector, N>(d_out + places[begin + i] * width + column, left);
    }
#pragma unroll
    for (int i = 0; i < kReadAhead; ++i) {
      if (!present[i]) continue;
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += load(values[i].values[j]);
    }
  }
  // Narrow weights take as many bytes as the rows or more: N of them may be more than one access moves.
  G* out = d_weight + token * width + column;
  Pack<G, N> result = read<kVector, N>(out, left);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    result.values[j] = store<G>(static_cast<W>(load(result.values[j]) + sum[j]));
  }
  write<kVector, N>(out, result, left);
}

template <typename T, typename G>
void add_rows(const void* d_out, const int64_t* sorted_tokens, const int64_t* places, void* d_weight,
              int64_t rows, int64_t width, Stream stream) {
  constexpr int N = kPack<T>;
  const auto* from = static_cast<const T*>(d_out);
  auto* to = static_cast<G*>(d_weight);
  const bool vector = fits_packs<N>(from, width) && fits_packs<N>(to, width);
  launch(
      "embedding_backward", vector ? backward_kernel<T, G, true> : backward_kernel<T, G, false>,
      dim3(static_cast<unsigned>(rows), static_cast<unsigned>(divide_up(width, int64_t{kColumnThreads} * N))),
      kColumnThreads, stream, from, sorted_tokens, places, to, rows, static_cast<int>(width));
}

}  // namespace

void embedding_backward(Element element, const void* d_out, const int64_t* sorted_tokens,
                        const int64_t* places, Element weight_element, void* d_weight, int64_t rows,
                        int64_t width, Stream stream) {
  if (rows * width == 0) return;
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    if (weight_element == element) {
      add_rows<T, T>(d_out, sorted_tokens, places, d_weight, rows, width, stream);
    } else if (weight_element == Element::kFloat32 && sizeof(T) < sizeof(float)) {
      add_rows<T, wide_t<T>>(d_out, sorted_tokens, places, d_weight, rows, width, stream);
    } else {
      throw std::runtime_error("embedding_backward: a gradient neither of the rows' type nor of their sums'");
    }
  });
}

}  // namespace satune::cuda
