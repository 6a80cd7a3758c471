// Whether a step updates the weights, and by what its gradients are multiplied then: a few plain functions of
// numbers that all ranks have, for the host and for a card, which decides without the host
// (update_decision.cu).
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SATUNE_ANYWHERE __host__ __device__
#else
#define SATUNE_ANYWHERE
#endif

namespace satune {

/// What torch.nn.utils.clip_grad_norm_ multiplies gradients by: max_norm / (norm + 1e-6), at most 1; 1 when
/// max_norm is 0 (no clipping).
SATUNE_ANYWHERE inline double clip_factor(double norm, double max_norm) {
  const double factor = max_norm / (norm + 1e-6);
  return max_norm > 0 && factor < 1 ? factor : 1;
}

/// What the ranks computed in a step.
struct StepNumbers {
  /// [ranks, count]: the sum of squares of the rank's share of the gradients, then loss and right answers of
  /// each of its micro-batches.
  const double* all;
  int64_t ranks, count;
  int64_t shards;  ///< ranks that share one model: the first ones; replicas hold the same shares
  double targets, loss_scale, max_grad_norm;
};

struct StepSums {
  double squares = 0, loss = 0, correct = 0;
};

/// In the order of the rows: the same sums whatever the number of ranks.
SATUNE_ANYWHERE inline StepSums sum_up(const StepNumbers& step) {
  StepSums sums;
  for (int64_t rank = 0; rank < step.shards; ++rank) sums.squares += step.all[rank * step.count];
  for (int64_t i = 1; i < step.count; i += 2) {
    for (int64_t rank = 0; rank < step.ranks; ++rank) {
      sums.loss += step.all[rank * step.count + i];
      sums.correct += step.all[rank * step.count + i + 1];
    }
  }
  return sums;
}

/// Before clipping.
SATUNE_ANYWHERE inline double gradient_norm(const StepSums& sums, const StepNumbers& step) {
  return sqrt(sums.squares) / step.loss_scale;
}

/// Whether loss and norm are finite.
SATUNE_ANYWHERE inline bool is_finite(const StepSums& sums, const StepNumbers& step) {
  const double loss = sums.loss / step.targets, norm = gradient_norm(sums, step);
  return loss - loss == 0 && norm - norm == 0;
}

/// What an update multiplies gradients by; NaN where there is none, since loss or norm is not finite.
SATUNE_ANYWHERE inline float gradient_scale(const StepSums& sums, const StepNumbers& step) {
  if (!is_finite(sums, step)) return NAN;
  return static_cast<float>(clip_factor(gradient_norm(sums, step), step.max_grad_norm) / step.loss_scale);
}

}  // namespace satune
