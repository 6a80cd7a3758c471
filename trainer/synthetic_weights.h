// Weights that cost no time to make: a block of normal deviates again and again, ones for norms.
#pragma once

#include "model/llama.h"
#include "trainer/sharding.h"

namespace satune {

/// Of a whole model.
void fill_synthetic(Weights& weights, double deviation);
/// Of this rank's share, and its frozen tensors.
void fill_synthetic(const Llama& model, const Sharding& sharding, double deviation);

}  // namespace satune
