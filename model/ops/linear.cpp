#include "model/ops/linear.h"

#include <ATen/ATen.h>

#include "model/ops/dispatch.h"
#include "model/ops/linear_fp32.h"
#include "model/ops/product_type.h"

namespace satune {
namespace {

bool through_fp32(const at::Tensor& x) {
  return x.is_cpu() && cpu_product_type(x.scalar_type()) != x.scalar_type();
}

/// With so few tokens (decoding) a product is one pass over the weight, which LibTorch's dot products make
/// without widening it.
bool few(const at::Tensor& x_NI) {
  return x_NI.size(0) < 4;
}

}  // namespace

at::Tensor linear_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI) {
  if (through_fp32(x_NI) && !few(x_NI)) return linear_fp32_forward(x_NI, weight_OI, {});
  return at::mm(x_NI, weight_OI.t());
}

at::Tensor linear_residual_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI,
                                   const at::Tensor& residual_NO) {
  if (through_fp32(x_NI) && !few(x_NI)) return linear_fp32_forward(x_NI, weight_OI, residual_NO);
  return at::addmm(residual_NO, x_NI, weight_OI.t());
}

at::Tensor linear_backward_input(const at::Tensor& d_y_NO, const at::Tensor& weight_OI) {
  if (through_fp32(d_y_NO)) return linear_fp32_backward_input(d_y_NO, weight_OI);
  return at::mm(d_y_NO, weight_OI);
}

void linear_backward_weight(const at::Tensor& d_y_NO, const at::Tensor& x_NI, const at::Tensor& d_weight_OI,
                            bool accumulate) {
  if (through_fp32(x_NI)) return linear_fp32_backward_weight(d_y_NO, x_NI, d_weight_OI, accumulate);
  at::Tensor gradient = d_weight_OI;
  const bool wider = gradient.scalar_type() != x_NI.scalar_type();
  if (wider && !x_NI.is_cpu()) {  // cuBLAS writes and adds fp32 as it has summed it
    if (accumulate) {
      at::addmm_out(gradient, gradient, d_y_NO.t(), x_NI, gradient.scalar_type());
    } else {
      at::mm_out(gradient, d_y_NO.t(), x_NI, gradient.scalar_type());
    }
  } else if (wider) {
    write_gradient(gradient, at::mm(d_y_NO.t(), x_NI), accumulate);
  } else if (accumulate) {
    at::addmm_out(gradient, gradient, d_y_NO.t(), x_NI);
  } else {
    at::mm_out(gradient, d_y_NO.t(), x_NI);
  }
}

}  // namespace satune
