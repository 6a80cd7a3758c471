// The global norm of the gradients, summed in fp64 in a fixed order.
#pragma once

#include <span>

#include "model/parameters.h"

namespace satune {

/// Sum of squares of gradients that lie in several 1-D buffers of one device. Its order depends on their
/// sizes alone, not on the number of threads. Not finite when any gradient is not.
double gradient_sum_of_squares(std::span<const at::Tensor> gradients);
double gradient_sum_of_squares(const ParameterBuffers& gradients);

/// The same as an fp64 scalar on their device, without waiting for a card.
at::Tensor sum_of_squares(std::span<const at::Tensor> gradients);

}  // namespace satune
