// How a run's settings have its model compute and keep what it computes.
#pragma once

#include "model/copy_queue.h"
#include "model/llama.h"
#include "trainer/memory_plan.h"
#include "trainer/settings.h"

namespace satune {

/// With settings.fp8: projections are products of 8-bit floats; at `stage` of sharding.
inline void use_fp8(Llama& model, const Settings& settings, int64_t stage) {
  if (settings.fp8) model.use_fp8(fp8_weights_are_kept(stage));
}

/// With settings.activation_offloading, where the model is on a card: activations wait on the host. Whether
/// they do.
inline bool offload_activations(Llama& model, const Settings& settings) {
  const at::Device device = model.weights().device();
  if (!settings.activation_offloading || device.is_cpu()) return false;
  model.offload_activations_by(make_copy_queue(device));
  return true;
}

}  // namespace satune
