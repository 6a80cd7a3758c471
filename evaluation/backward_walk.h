// The weight gradients of one batch in the order in which the backward pass makes them.
#pragma once

#include "model/llama.h"

namespace satune {

/// What gradients are called before the tensor's own name: "gradient.model.layers.3.mlp.up_proj.weight".
inline constexpr std::string_view kGradientPrefix = "gradient.";

/// Forward and backward of the mean loss over the batch's targets (at least one). Shows "loss" (fp64), then
/// the gradient of every weight, in the model's type: from the head down, within a layer from down_proj to
/// the norm before the attention, the embedding (also a tied one, which is the head too) last. So the first
/// gradient that is not as it should be is next to what made it so. The tensors stay valid.
void walk_backward(Llama& model, const DeviceBatch& batch, const Observer& observer);

}  // namespace satune
