// RMSNorm: y = w * round(x * rstd), rstd = 1 / sqrt(mean(x^2) + eps), statistics in fp32 (fp64 for fp64),
// rounded to the model's dtype before the weight as transformers does.
//
// The residual stream's addition is no part of it: the projection before it adds while it writes, which
// leaves one array less to read and write than a norm that adds.
#pragma once

#include <ATen/core/Tensor.h>

namespace satune {

struct RmsNormOut {
  at::Tensor y_NC;
  at::Tensor rstd_N;  ///< fp32 (fp64 for fp64 inputs)
};

/// `largest`: where there is one, on a card, set to what to_fp8() (fp8.h) takes of y, but not of fp64.
RmsNormOut rms_norm_forward(const at::Tensor& x_NC, const at::Tensor& weight_C, double eps,
                            at::Tensor* largest = nullptr);

/// Gradient with respect to x, plus `residual_NC` (the gradient that by-passes the norm; may be undefined).
/// d_weight_C: written (accumulate false) or added to; undefined where the weight is frozen. Its sum over N
/// runs in blocks that depend on N alone, so that it does not depend on the number of threads or on the card.
/// `largest`: as above, of what is returned.
at::Tensor rms_norm_backward(const at::Tensor& d_y_NC, const at::Tensor& x_NC, const at::Tensor& weight_C,
                             const at::Tensor& rstd_N, const at::Tensor& residual_NC,
                             const at::Tensor& d_weight_C, bool accumulate, at::Tensor* largest = nullptr);

}  // namespace satune
