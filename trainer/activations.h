// Bytes that one micro-batch's forward and backward need beside weights and gradients, and the choice of what
// the forward keeps. Follows model/layer.cpp, model/llama.cpp and model/ops/ buffer by buffer.
#pragma once

#include <cstdint>
#include <vector>

#include "model/files/model_config.h"
#include "model/llama.h"
#include "trainer/settings.h"

namespace satune {

/// One micro-batch on one device.
struct PassShape {
  const ModelConfig& config;
  int64_t tokens = 0;            ///< of the largest micro-batch
  int64_t element = 0;           ///< bytes of an activation
  int64_t gradient_element = 0;  ///< bytes of a weight's gradient as the backward writes it
  bool on_card = false;
  bool widened = false;    ///< 16-bit products go through fp32 tiles (linear_fp32.h)
  int lowest_trained = 0;  ///< segment where the backward ends
};

/// What one layer's forward keeps until its backward, for `tokens` tokens (see LayerRecord). An anchor keeps
/// its Q and K under every policy.
int64_t layer_activation_bytes(const ModelConfig& config, int layer, Recording recording, int64_t tokens,
                               int64_t element);

/// What all layers keep. Those that no backward reaches keep what their span still reads.
int64_t kept_bytes(const PassShape& shape, const std::vector<Recording>& recording);

/// The most that is alive at once: what is kept and the layer, or the chunk of the loss, in progress.
int64_t peak_bytes(const PassShape& shape, const std::vector<Recording>& recording);

/// `choice` for every layer. "auto": as many layers as fit into `available` bytes keep everything, the first
/// ones selective where that is enough, else recomputed; all recomputed where nothing fits.
std::vector<Recording> choose_recording(Checkpointing choice, const PassShape& shape, int64_t available);

}  // namespace satune
