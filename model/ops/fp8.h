// Matrices in 8-bit floats with one scale each, and the products of projections over them. Formats and their
// use (e4m3 forward, e5m2 for gradients) are those of Micikevicius et al., arXiv 2209.05433; the scale is
// that of the largest magnitude there is now, not of steps before.
#pragma once

#include <ATen/core/Tensor.h>

namespace satune {

enum class Fp8Format {
  kE4M3,  ///< up to 448, 3 bits of mantissa: activations and weights
  kE5M2,  ///< up to 57,344, 2 bits: gradients
};

/// How a matrix is stored: products on cards take both operands along what they sum over.
enum class Fp8Layout { kRows, kColumns, kBoth };

struct Fp8Matrix {
  /// [R, C], and its transpose [C, R rounded up to 16] with zeros behind R; undefined unless asked for.
  at::Tensor rows_RC, columns_CR;
  at::Tensor scale;  ///< fp32 scalar: an element is what is stored times this
};

/// x [R, C], whose rows may be strided, rounded to nearest even. A matrix with an infinite or NaN element
/// gets a scale that is none either, so that what is made of it shows it. `largest`: what the op that made x
/// gave of its largest magnitudes, which saves a pass over it; undefined: they are looked for here.
Fp8Matrix to_fp8(const at::Tensor& x_RC, Fp8Format format, Fp8Layout layout, const at::Tensor& largest = {});

/// Whether products in 8 bits take a weight [outputs, inputs]: multiples of 16 both.
bool takes_fp8(int64_t outputs, int64_t inputs);

/// x W^T [N, outputs] in `type` (bf16, fp16, fp32); x and W by rows. Summed in fp32, on Hopper with fewer
/// bits between (cuBLAS's fast accumulation).
at::Tensor fp8_forward(const Fp8Matrix& x_NI, const Fp8Matrix& weight_OI, at::ScalarType type);

/// d_y W [N, inputs] in `type`; d_y by rows, W by columns.
at::Tensor fp8_backward_input(const Fp8Matrix& d_y_NO, const Fp8Matrix& weight_OI, at::ScalarType type);

/// d_weight = d_y^T x, or += with `accumulate`; both by columns.
void fp8_backward_weight(const Fp8Matrix& d_y_NO, const Fp8Matrix& x_NI, const at::Tensor& d_weight_OI,
                         bool accumulate);

}  // namespace satune
