// The global norm of the gradients, summed in fp64 in a fixed order.
#pragma once

#include <span>

#include "model/parameters.h"

namespace satune {

/// Sum of squares of gradients that lie in several 1-D buffers of one device. Its order depends on their
/// sizes alone, not on the number of threads. Not finite when any gradient is not.
double gradient_sum_of_squares(std::span<const at::Tensor> gradients);
double gradient_sum_of_squares(const ParameterBuffers& gradients);

/// The same of buffers on a card, without waiting for it: a scalar fp64 tensor there.
at::Tensor sum_of_squares_on_card(std::span<const at::Tensor> gradients);

/// What torch.nn.utils.clip_grad_norm_ multiplies gradients by: max_norm / (norm + 1e-6), at most 1;
/// 1 when max_norm is 0 (no clipping).
double clip_factor(double norm, double max_norm);

}  // namespace satune
