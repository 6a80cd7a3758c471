// Bytes a run needs on one device, before anything is allocated. Drives gradient_checkpointing "auto" and
// what --dry-run prints.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/files/model_config.h"
#include "model/files/tensor_table.h"
#include "model/llama.h"
#include "trainer/settings.h"
#include "trainer/shard.h"

namespace satune {

/// Bytes of what one layer's forward keeps until its backward, for `tokens` tokens (see LayerRecord).
/// `element` = bytes of an activation. An anchor keeps its Q and K under every policy.
int64_t layer_activation_bytes(const ModelConfig& config, int layer, Recording recording, int64_t tokens,
                               int64_t element);

struct MemoryPlan {
  int64_t weights = 0;  ///< trained and frozen, in the compute dtype
  int64_t gradients = 0;
  int64_t master = 0;  ///< fp32 copies; 0 in fp32 runs, where the weights are the master
  int64_t moments = 0;
  int64_t activations = 0;           ///< kept between forward and backward, all layers
  int64_t working = 0;               ///< the layer in progress, the loss's chunk of logits
  std::vector<Recording> recording;  ///< per layer

  int64_t total() const { return weights + gradients + master + moments + activations + working; }
  /// ("weights", bytes) ... in the order above, for printing.
  std::vector<std::pair<std::string, int64_t>> items() const;
};

/// `tokens` = tokens of the largest micro-batch (per_device_train_batch_size * max_length at most).
/// gradient_checkpointing "auto": as many layers as fit into `available` bytes keep everything, the first
/// ones selective where that is enough, else recomputed; all recomputed where nothing fits.
MemoryPlan plan_memory(const Settings& settings, const ModelConfig& config, const TensorTable& table,
                       const std::vector<bool>& trained, int64_t tokens, int64_t available);

/// Element size of weights and activations: 4 for fp32, 2 otherwise.
int64_t compute_element_bytes(Precision precision);
/// Element size of the gradients that a backward writes. bf16 in bf16 runs, because sums are taken in fp32; 4
/// where they are summed over micro-batches in place, which a group of one does, and in fp16 runs, whose
/// range is too small for them.
int64_t gradient_element_bytes(const Settings& settings, const World& world = {});

}  // namespace satune
