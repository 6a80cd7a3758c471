#include "trainer/adamw_kernels.h"
#include "trainer/cpu_clones.h"

namespace satune {
namespace {

// Builtins instead of the standard library's functions: those were declared under other options and could
// not be inlined here.
SATUNE_INLINE float to_float(float value) {
  return value;
}
SATUNE_INLINE float to_float(uint16_t bf16_bits) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bf16_bits) << 16);
}

constexpr int64_t kBlock = 64;

/// Square roots in place. As a call of its own the compiler would keep sqrtf's error number and not
/// vectorise; the instruction is correctly rounded either way.
SATUNE_INLINE void square_roots(float* values) {
#if defined(__x86_64__)
  typedef float Vector __attribute__((vector_size(16)));
  for (int64_t i = 0; i < kBlock; i += 4) {
    Vector four;
    __builtin_memcpy(&four, values + i, sizeof(four));
    four = __builtin_ia32_sqrtps(four);
    __builtin_memcpy(values + i, &four, sizeof(four));
  }
#else
  for (int64_t i = 0; i < kBlock; ++i) values[i] = __builtin_sqrtf(values[i]);
#endif
}

template <typename Gradient>
SATUNE_INLINE void update_block(float* __restrict master, float* __restrict exp_avg,
                                float* __restrict exp_avg_sq, const Gradient* __restrict gradient, int64_t n,
                                const AdamWCoefficients& c) {
  float root[kBlock] = {};
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gradient[i]) * c.gradient_scale;
    exp_avg[i] = exp_avg[i] + c.one_minus_beta1 * (g - exp_avg[i]);
    exp_avg_sq[i] = exp_avg_sq[i] * c.beta2 + c.one_minus_beta2 * g * g;
    root[i] = exp_avg_sq[i];
  }
  square_roots(root);
  for (int64_t i = 0; i < n; ++i) {
    const float denominator = root[i] / c.bias_correction2_sqrt + c.epsilon;
    master[i] = master[i] * c.decay - c.step_size * (exp_avg[i] / denominator);
  }
}

template <typename Gradient>
SATUNE_INLINE void update(float* master, float* exp_avg, float* exp_avg_sq, const Gradient* gradient,
                          int64_t n, const AdamWCoefficients& coefficients) {
  const AdamWCoefficients c = coefficients;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    update_block(master + i, exp_avg + i, exp_avg_sq + i, gradient + i, kBlock, c);
  }
  update_block(master + i, exp_avg + i, exp_avg_sq + i, gradient + i, n - i, c);
}

/// Eight running sums, so that the loop vectorises without reordering additions.
template <typename Value>
SATUNE_INLINE double sum_of_squares(const Value* __restrict values, int64_t n) {
  constexpr int kLanes = 8;
  double lanes[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = to_float(values[i + lane]);
      lanes[lane] += value * value;
    }
  }
  for (int64_t i = whole; i < n; ++i) {
    const double value = to_float(values[i]);
    lanes[i - whole] += value * value;
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace

SATUNE_CLONES
void adamw_update_f32(float* master, float* exp_avg, float* exp_avg_sq, const float* gradient, int64_t n,
                      const AdamWCoefficients& c) {
  update(master, exp_avg, exp_avg_sq, gradient, n, c);
}

SATUNE_CLONES
void adamw_update_bf16(float* master, float* exp_avg, float* exp_avg_sq, const uint16_t* gradient, int64_t n,
                       const AdamWCoefficients& c) {
  update(master, exp_avg, exp_avg_sq, gradient, n, c);
}

SATUNE_CLONES
void round_to_bf16(const float* from, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = __builtin_bit_cast(uint32_t, from[i]);
    const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
    const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    to[i] = static_cast<uint16_t>(nan ? ((bits >> 16) | 0x0040U) : rounded);
  }
}

SATUNE_CLONES
double sum_of_squares_f32(const float* values, int64_t n) {
  return sum_of_squares(values, n);
}

SATUNE_CLONES
double sum_of_squares_bf16(const uint16_t* values, int64_t n) {
  return sum_of_squares(values, n);
}

}  // namespace satune
