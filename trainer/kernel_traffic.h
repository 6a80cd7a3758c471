// Bytes that the memory-bound kernels have to move between a card and its memory: what their time is measured
// against. Each array counts once for each time that it cannot come from a cache; what is small beside them
// (indices, tables of angles, one number a row) and what stays in the cache (partial sums) is left out. The
// tests count what the kernels really read and write.
//
// All sizes are in elements; `item` is the bytes of one element of the activations or weights.
#pragma once

#include <cstdint>

#include "trainer/state_form.h"

namespace satune::traffic {

struct Bytes {
  int64_t read = 0, written = 0;
  constexpr int64_t total() const { return read + written; }
};

/// x in, y out.
constexpr Bytes rms_norm_forward(int64_t rows, int64_t width, int64_t item) {
  return {rows * width * item, rows * width * item};
}
/// d_y, x and the residual's gradient in, d_x out.
constexpr Bytes rms_norm_backward(int64_t rows, int64_t width, int64_t item, bool residual) {
  return {rows * width * item * (residual ? 3 : 2), rows * width * item};
}
/// In place on the heads of q and k.
constexpr Bytes rope(int64_t rows, int64_t heads, int64_t head_dim, int64_t item) {
  return {rows * heads * head_dim * item, rows * heads * head_dim * item};
}
/// gate and up in, act out.
constexpr Bytes swiglu_forward(int64_t rows, int64_t ffn, int64_t item) {
  return {2 * rows * ffn * item, rows * ffn * item};
}
/// gate, up and d_act in, d_gate and d_up out.
constexpr Bytes swiglu_backward(int64_t rows, int64_t ffn, int64_t item) {
  return {3 * rows * ffn * item, 2 * rows * ffn * item};
}
/// x in. Nothing where the op before gave the largest magnitudes of its result.
constexpr Bytes fp8_largest(int64_t rows, int64_t width, int64_t item) {
  return {rows * width * item, 0};
}
/// x in, out a byte of each element for each of `layouts` (rows, columns); `rows` a multiple of 16.
constexpr Bytes fp8_quantize(int64_t rows, int64_t width, int64_t item, int64_t layouts) {
  return {rows * width * item, rows * width * layouts};
}
/// Logits in; again in and the gradient out where it is wanted. The second reading may come from the cache.
constexpr Bytes cross_entropy(int64_t rows, int64_t vocabulary, int64_t item, bool gradient) {
  return {rows * vocabulary * item * (gradient ? 2 : 1), gradient ? rows * vocabulary * item : 0};
}
/// d_out in; the rows of the tokens that occur, in and out. Zeroing the whole gradient before is not part of
/// it.
constexpr Bytes embedding_backward(int64_t rows, int64_t different_tokens, int64_t width, int64_t item,
                                   int64_t weight_item) {
  return {width * (rows * item + different_tokens * weight_item), width * different_tokens * weight_item};
}
constexpr Bytes sum_of_squares(int64_t elements, int64_t item) {
  return {elements * item, 0};
}
/// Gradient, master and both moments in; master, moments and the weights out (`weight_item` 0: the master is
/// the weights).
constexpr Bytes adamw(int64_t elements, int64_t gradient_item, int64_t weight_item) {
  return {elements * (gradient_item + 12), elements * (12 + weight_item)};
}
/// The same of state in memory modes. `weight_item` as above for an fp32 master, otherwise 0.
constexpr Bytes adamw_state(int64_t elements, int64_t gradient_item, StateForm master, StateForm exp_avg,
                            StateForm exp_avg_sq, int64_t weight_item) {
  const int64_t upper = master == StateForm::kSplit ? 2 : 0;  // of the masters, in the weights
  const int64_t state = elements * upper + state_bytes(master, elements) + state_bytes(exp_avg, elements) +
                        state_bytes(exp_avg_sq, elements);
  return {elements * gradient_item + state, state + elements * weight_item};
}
/// The parts of all ranks in, and with `accumulate` the sum; the sum out.
constexpr Bytes sum_ranks(int64_t elements, int64_t ranks, int64_t item, int64_t sum_item, bool accumulate) {
  return {elements * (ranks * item + (accumulate ? sum_item : 0)), elements * sum_item};
}

}  // namespace satune::traffic
