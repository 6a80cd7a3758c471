// Compiled with --fmad=false: a product and a sum that are rounded one by one give the bits of the CPU's
// path.
#include "trainer/cuda_kernels.h"
#include "trainer/state_forms.cuh"

namespace satune::cuda {
namespace {

constexpr int N = 4;  // 16 bytes of each fp32 array, so that a warp's accesses lie side by side

template <typename G, typename W, bool kVector>
__global__ void __launch_bounds__(kThreads)
    update_kernel(AdamWArrays arrays, int64_t n, AdamWCoefficients c) {
  const float scale = c.decided_scale == nullptr ? c.gradient_scale : *c.decided_scale;
  if (scale != scale) return;
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N, left = n - at;
  if (left <= 0) return;
  const auto gradient = read<kVector, N>(static_cast<const G*>(arrays.gradient) + at, left);
  auto p = read<kVector, N>(arrays.master + at, left), m = read<kVector, N>(arrays.exp_avg + at, left),
       v = read<kVector, N>(arrays.exp_avg_sq + at, left);
  Pack<W, N> weights;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float g = load(gradient.values[i]) * scale;
    m.values[i] = m.values[i] + c.one_minus_beta1 * (g - m.values[i]);
    v.values[i] = v.values[i] * c.beta2 + c.one_minus_beta2 * g * g;
    const float denominator = square_root(v.values[i]) / c.bias_correction2_sqrt + c.epsilon;
    p.values[i] = p.values[i] * c.decay - c.step_size * (m.values[i] / denominator);
    weights.values[i] = round_weight(p.values[i], W{});
  }
  write<kVector, N>(arrays.master + at, p, left);
  write<kVector, N>(arrays.exp_avg + at, m, left);
  write<kVector, N>(arrays.exp_avg_sq + at, v, left);
  if constexpr (sizeof(W) < sizeof(float))
    write<kVector, N>(static_cast<W*>(arrays.weights) + at, weights, left);
}

template <typename G, typename W>
void update(const AdamWArrays& arrays, int64_t n, const AdamWCoefficients& coefficients, Stream stream) {
  // A rest of less than a pack is no reason to take all of them apart.
  const int64_t whole = n / N * N;
  const bool vector = fits_packs<N>(arrays.master, whole) && fits_packs<N>(arrays.exp_avg, whole) &&
                      fits_packs<N>(arrays.exp_avg_sq, whole) &&
                      fits_packs<N>(static_cast<const G*>(arrays.gradient), whole) &&
                      fits_packs<N>(static_cast<const W*>(arrays.weights), whole);
  const auto start = [&](auto kernel, int64_t begin, int64_t end) {
    if (begin == end) return;
    AdamWArrays part = arrays;
    part.master += begin;
    part.exp_avg += begin;
    part.exp_avg_sq += begin;
    part.gradient = static_cast<const G*>(arrays.gradient) + begin;
    if (arrays.weights != nullptr) part.weights = static_cast<W*>(arrays.weights) + begin;
    launch("adamw_update", kernel, dim3(static_cast<unsigned>(divide_up(end - begin, int64_t{kThreads} * N))),
           kThreads, stream, part, end - begin, coefficients);
  };
  const int64_t packed = vector ? whole : 0;
  start(update_kernel<G, W, true>, 0, packed);
  start(update_kernel<G, W, false>, packed, n);
}

}  // namespace

void adamw_update(const AdamWArrays& arrays, int64_t n, const AdamWCoefficients& coefficients,
                  Stream stream) {
  const Element gradient = arrays.gradient_element, weights = arrays.weight_element;
  const bool wide_gradient = gradient == Element::kFloat32;
  if (arrays.weights == nullptr && wide_gradient) {
    update<float, float>(arrays, n, coefficients, stream);
  } else if (arrays.weights != nullptr && weights == Element::kBFloat16 && wide_gradient) {
    update<float, __nv_bfloat16>(arrays, n, coefficients, stream);
  } else if (arrays.weights != nullptr && weights == Element::kBFloat16 && gradient == weights) {
    update<__nv_bfloat16, __nv_bfloat16>(arrays, n, coefficients, stream);
  } else if (arrays.weights != nullptr && weights == Element::kFloat16 && wide_gradient) {
    update<float, __half>(arrays, n, coefficients, stream);
  } else if (arrays.weights != nullptr && weights == Element::kFloat16 && gradient == weights) {
    update<__half, __half>(arrays, n, coefficients, stream);
  } else {
    throw std::runtime_error("adamw_update: a gradient neither fp32 nor of the weights' type");
  }
}

}  // namespace satune::cuda
