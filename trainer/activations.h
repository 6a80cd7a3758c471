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
  bool offloads = false;   ///< activation_offloading: a layer's own go to the host (activation_offload.h)
  bool fp8 = false;        ///< projections that take them are products of 8-bit floats
  bool fp8_weights_kept = true;  ///< else made for each product
  std::vector<int64_t> attention =
      {};  ///< bytes of buffers that attention's backward takes beside its tensors
};

/// What one layer's forward keeps until its backward (LayerRecord). An anchor keeps its Q and K under every
/// policy.
int64_t layer_activation_bytes(const PassShape& shape, int layer, Recording recording);

struct PassBytes {
  int64_t kept = 0;     ///< by all layers; by those that no backward reaches what their span still reads
  int64_t working = 0;  ///< beside that, at the worst moment
  /// Of these moments, the worst with a layer in progress, and with a chunk of the loss (its logits, the
  /// gradient of the head) in progress. On the CPU what both leave behind can be more than either.
  int64_t layer = 0, loss = 0;
  int64_t host = 0;  ///< pinned, where activations are offloaded: LibTorch takes powers of two
  int64_t total() const { return kept + working; }
};

/// Of buffers in pinned memory, each of which LibTorch rounds up to a power of two.
int64_t pinned_bytes(const std::vector<int64_t>& sizes);

/// Bytes of a pass over all layers. Offloaded, the card has what stays of every layer, beside the own
/// activations of the layer in progress and of one on its way, or of the last layer while the loss is in
/// progress. On the CPU freed buffers below glibc's threshold for maps (host_allocator.h) stay with the
/// process: what they need at their worst is there for good, beside the large ones of the moment.
PassBytes pass_bytes(const PassShape& shape, const std::vector<Recording>& recording);

/// `choice` for every layer. "auto": as many layers as fit into `available` bytes keep everything, the first
/// ones selective where that is enough, else recomputed; all recomputed where nothing fits, and where
/// activations are offloaded, so that the least has to travel.
std::vector<Recording> choose_recording(Checkpointing choice, const PassShape& shape, int64_t available);

}  // namespace satune
