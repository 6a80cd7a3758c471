// Launchers of the trainer's CUDA kernels, as model/ops/cuda_kernels.h has those of the model: raw pointers,
// sizes and a stream; std::runtime_error with CUDA's message when a launch fails; results that depend on the
// sizes and values alone.
#pragma once

#include <cstdint>

#include "model/ops/cuda_kernels.h"
#include "trainer/adamw_kernels.h"
#include "trainer/state_form.h"
#include "trainer/update_decision.h"

namespace satune::cuda {

/// One update of elements [0, n) in one pass: the operations of trainer/adamw_kernels.h, to the same bits.
/// The gradient is fp32 or of the weights' type. `weights`: bf16 or fp16, rounded to nearest even from the
/// new master; null where the master is the weights.
struct AdamWArrays {
  float *master, *exp_avg, *exp_avg_sq;
  const void* gradient;
  Element gradient_element;
  void* weights;
  Element weight_element;  ///< fp32 where `weights` is null
};
void adamw_update(const AdamWArrays& arrays, int64_t n, const AdamWCoefficients& coefficients, Stream stream);

/// State in memory modes: every combination of forms that settings allow, but fp32 throughout.
struct AdamWState {
  /// `weights` of an fp32 master: to be rounded from it to nearest even; null where the master is the
  /// weights.
  StateMemory master;
  StateMemory exp_avg, exp_avg_sq;
  const void* gradient;
  Element gradient_element;
  Element weight_element;  ///< of the weights of an fp32 master; otherwise they are bf16
};
/// Elements [begin, end) of a share, which are those of a tensor from `first` on.
struct AdamWPiece {
  int64_t begin, end, first;
  uint32_t tensor;  ///< index in the model's table
  bool decay;
};
/// One update of a share of n elements in one pass: update_tiles() of trainer/adamw_tiles.h, to the same
/// bits. `pieces` [count], ascending, are read on the host. One launch for 32 of them.
void adamw_update_state(const AdamWState& state, int64_t n, const AdamWPiece* pieces, int64_t count,
                        const StateUpdate& update, Stream stream);

/// Sums of squares in fp64, one of each so many elements, into `parts` [sum_of_squares_parts(n)]; then that
/// of all parts into one number. Not finite when a value is not.
int64_t sum_of_squares_parts(int64_t n);
void sum_of_squares(Element element, const void* values, int64_t n, double* parts, Stream stream);
void sum_of_parts(const double* parts, int64_t count, double* sum, Stream stream);

/// scale [1] = gradient_scale() of numbers on the card, to the bits of the host.
void decide_update(const StepNumbers& step, float* scale, Stream stream);

/// trainer/sum_parts.h: sum [n] = parts[0] + parts[1] + ... in this order, after sum itself with
/// `accumulate`. In the statistics' type of `element`. `parts` is read on the host.
void sum_ranks(Element element, const void* const* parts, int64_t count, void* sum, int64_t n,
               bool accumulate, Stream stream);

}  // namespace satune::cuda
