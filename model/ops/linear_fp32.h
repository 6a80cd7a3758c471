// Projections of 16-bit tensors through fp32 products, for CPUs without 16-bit ones (product_type.h):
// operands are widened a tile at a time, sums are fp32, and each result is rounded once. Scratch does not
// grow with the number of tokens and outputs. CPU only; every operand of one
// 16-bit type.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace satune {

/// What is widened at a time of a product of `tokens` rows with a weight [outputs, inputs]: small enough for
/// the last-level cache, large enough that the product does not notice.
struct Fp32Tile {
  int64_t tokens, outputs, inputs;

  Fp32Tile(int64_t tokens, int64_t outputs, int64_t inputs);
};

/// x [N, in] W [out, in] transposed (+ residual [N, out] where defined) -> [N, out].
at::Tensor linear_fp32_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI,
                               const at::Tensor& residual_NO);

/// d_y [N, out] W [out, in] -> [N, in].
at::Tensor linear_fp32_backward_input(const at::Tensor& d_y_NO, const at::Tensor& weight_OI);

/// d_weight [out, in] = d_y^T x, or += with `accumulate`. An fp32 d_weight takes the sums unrounded.
void linear_fp32_backward_weight(const at::Tensor& d_y_NO, const at::Tensor& x_NI,
                                 const at::Tensor& d_weight_OI, bool accumulate);

}  // namespace satune
