// The inner loops of the optimizer on the CPU: plain arrays, one thread, no LibTorch. Compiled without
// floating-point contraction, so that an element's new value does not depend on where it stands in an array
// or on the instruction set.
#pragma once

#include <cstdint>

namespace satune {

/// Coefficients of one update; see adamw.h.
struct AdamWCoefficients {
  float gradient_scale;  ///< clipping and loss scale
  float beta1, beta2;
  float one_minus_beta1, one_minus_beta2;
  float decay;                  ///< 1 - lr * weight_decay; 1 for undecayed tensors
  float step_size;              ///< lr / (1 - beta1^t)
  float bias_correction2_sqrt;  ///< sqrt(1 - beta2^t)
  float epsilon;
  /// On a card, in its memory: takes the place of gradient_scale, and where it is NaN there is no update.
  const float* decided_scale = nullptr;
};

/// What an update of a share needs beside its arrays.
struct StateUpdate {
  AdamWCoefficients decayed, undecayed;  ///< the same but for `decay`
  uint64_t seed = 0;                     ///< of stochastic rounding
  int64_t update = 0;                    ///< its number
};

/// Elements [0, n) of fp32 master, moments and gradient.
void adamw_update_f32(float* master, float* exp_avg, float* exp_avg_sq, const float* gradient, int64_t n,
                      const AdamWCoefficients& c);
/// The same from a bf16 gradient (bit patterns).
void adamw_update_bf16(float* master, float* exp_avg, float* exp_avg_sq, const uint16_t* gradient, int64_t n,
                       const AdamWCoefficients& c);

/// fp32 to bf16, round to nearest even; NaN stays NaN.
void round_to_bf16(const float* from, uint16_t* to, int64_t n);

/// Sum of squares in fp64, in an order that depends on n alone.
double sum_of_squares_f32(const float* values, int64_t n);
double sum_of_squares_bf16(const uint16_t* values, int64_t n);

}  // namespace satune
