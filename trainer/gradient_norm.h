// The global norm of the gradients, summed in fp64 in a fixed order.
#pragma once

#include "model/parameters.h"
#include "trainer/shard.h"

namespace satune {

/// Sum of squares of this rank's share of the gradients. Its order depends on the buffers alone, not on the
/// number of threads. Not finite when any gradient is not.
double gradient_sum_of_squares(const ParameterBuffers& gradients, const World& world = {});

/// What torch.nn.utils.clip_grad_norm_ multiplies gradients by: max_norm / (norm + 1e-6), at most 1;
/// 1 when max_norm is 0 (no clipping).
double clip_factor(double norm, double max_norm);

}  // namespace satune
