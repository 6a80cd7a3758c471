#include "model/ops/linear.h"

#include <ATen/ATen.h>

#include "model/ops/dispatch.h"

namespace satune {

at::Tensor linear_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI) {
  return at::mm(x_NI, weight_OI.t());
}

at::Tensor linear_residual_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI,
                                   const at::Tensor& residual_NO) {
  return at::addmm(residual_NO, x_NI, weight_OI.t());
}

at::Tensor linear_backward_input(const at::Tensor& d_y_NO, const at::Tensor& weight_OI) {
  return at::mm(d_y_NO, weight_OI);
}

void linear_backward_weight(const at::Tensor& d_y_NO, const at::Tensor& x_NI, const at::Tensor& d_weight_OI,
                            bool accumulate) {
  at::Tensor gradient = d_weight_OI;
  if (gradient.scalar_type() != x_NI.scalar_type()) {
    write_gradient(gradient, at::mm(d_y_NO.t(), x_NI), accumulate);
  } else if (accumulate) {
    at::addmm_out(gradient, gradient, d_y_NO.t(), x_NI);
  } else {
    at::mm_out(gradient, d_y_NO.t(), x_NI);
  }
}

}  // namespace satune
