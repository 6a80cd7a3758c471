// Projections without bias, and the way their weight gradients reach the flat gradient buffers. 16-bit
// tensors go through fp32 products on CPUs without 16-bit ones (product_type.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace satune {

/// x [N, in] times weight [out, in] transposed -> [N, out].
at::Tensor linear_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI);

/// residual + x W^T, summed before the one rounding.
at::Tensor linear_residual_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI,
                                   const at::Tensor& residual_NO);

/// d_x [N, in] = d_y W.
at::Tensor linear_backward_input(const at::Tensor& d_y_NO, const at::Tensor& weight_OI);

/// d_weight = d_y^T x (or += with `accumulate`), straight from the GEMM where the element types agree, and on
/// a card where the gradient is fp32. On the CPU a gradient of a wider type takes the product in the model's
/// type, or unrounded out of an fp32 product.
void linear_backward_weight(const at::Tensor& d_y_NO, const at::Tensor& x_NI, const at::Tensor& d_weight_OI,
                            bool accumulate);

}  // namespace satune
