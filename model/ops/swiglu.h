// SwiGLU: act = silu(gate) * up, where gate and up are the two halves of each row.
#pragma once

#include <ATen/core/Tensor.h>

namespace satune {

/// gate_up [N, 2F] -> [N, F]; computed in fp32 and rounded once. `largest`: where there is one, on a card,
/// set to what to_fp8() (fp8.h) takes of the result, but not of fp64.
at::Tensor swiglu_forward(const at::Tensor& gate_up_N2F, at::Tensor* largest = nullptr);

/// Gradient with respect to gate and up, [N, 2F].
at::Tensor swiglu_backward(const at::Tensor& d_act_NF, const at::Tensor& gate_up_N2F,
                           at::Tensor* largest = nullptr);

}  // namespace satune
