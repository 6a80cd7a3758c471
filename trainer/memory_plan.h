// Bytes that one rank of a run needs, by component, before anything is allocated. Drives zero_stage "auto"
// and gradient_checkpointing "auto", --dry-run's memory line and `satune plan`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/files/model_config.h"
#include "model/files/tensor_table.h"
#include "model/ops/attention.h"
#include "trainer/activations.h"
#include "trainer/settings.h"
#include "trainer/shard.h"
#include "trainer/shard_schedule.h"

namespace satune {

/// What is planned. The references must outlive it.
struct PlannedRun {
  const Settings& settings;
  const ModelConfig& config;
  const TensorTable& table;
  const std::vector<bool>& trained_mask;  ///< per table tensor; empty = all trained
  int64_t tokens = 0;  ///< of the largest micro-batch, whose per_device_train_batch_size rows are full
  bool on_card = false;
  int64_t threads = 1;  ///< of this rank, on the CPU
  /// Of one length, in the largest micro-batch, as `satune bench` makes them; 0 = only the data tells.
  int64_t documents = 0;
  /// That passed its trial on the device; unset = the first that the settings let a card of Hopper try.
  std::optional<AttentionKernel> attention = {};
};

/// Of one rank. On the CPU the device is the machine's memory, which its ranks share.
struct MemoryPlan {
  int64_t weights = 0;    ///< trained and frozen, in the compute dtype; stage 3: this rank's share
  int64_t weights8 = 0;   ///< fp8: the layers' projections; stage 3 makes them for each product
  int64_t gathered = 0;   ///< stage 3: buffers for whole segments
  int64_t gradients = 0;  ///< as the backward writes them: whole, or a few segments (stages 2, 3); and what
                          ///< other ranks' parts of a segment arrive in
  int64_t sums = 0;       ///< fp32 gradients summed over ranks and micro-batches: this rank's share
  int64_t gathered_sums = 0;  ///< stage 0: those of all ranks; with replicas, what they exchange
  int64_t master = 0;  ///< beside the weights: copies or remainders; 0 where the weights are the master
  int64_t moments = 0;
  int64_t snapshot_copy = 0;  ///< async_save on the CPU
  int64_t activations = 0;    ///< kept between forward and backward, all layers
  int64_t working = 0;        ///< the layer in progress, or the loss's chunk of logits: the larger
  int64_t libraries = 0;  ///< what matrix libraries keep: on the CPU for threads and shapes, on a card cuBLAS

  /// Beside a card: optimizer_offload "cpu", activation_offloading (which alone is host_activations), the
  /// copy of async_save.
  int64_t host = 0, host_activations = 0;

  std::vector<Recording> recording;  ///< per layer
  /// What `working` is the larger of (PassBytes).
  int64_t working_layer = 0, working_loss = 0;

  /// Of the device.
  int64_t total() const;
  /// ("weights", bytes) ... in the order above, for printing; without host.
  std::vector<std::pair<std::string, int64_t>> items() const;
};

/// gradient_checkpointing "auto" is settled by `available`, the bytes of the device.
MemoryPlan plan_memory(const PlannedRun& run, const Sharded& sharded, int64_t available);

/// The parts that are not empty, a line each, and their sum beside `available` bytes.
std::vector<std::string> memory_table(const MemoryPlan& plan, int64_t available);

inline constexpr int64_t kHighestStage = 3;  ///< of ZeRO

/// A stage and why.
struct StageChoice {
  int64_t stage = 0;
  std::string reason;  ///< "zero_stage auto: 2 (stage 1 would need 31.2 GiB a rank, 24.0 GiB available)"
};

/// The stage of the settings, or for "auto" the lowest whose plan fits `available` bytes a rank, the highest
/// where none fits. A group of one has nothing to cut: 0.
StageChoice choose_zero_stage(const PlannedRun& run, int64_t world_size, int64_t available);

/// Parameters of the layers' projections that 8-bit products take, from one segment on; frozen tensors, which
/// have products of their own, count as if they were trained.
int64_t fp8_parameters(const TensorTable& table, int lowest_segment = 0);
/// The same of one segment.
int64_t fp8_parameters_of(const TensorTable& table, int segment);

/// fp8: whether the weights in 8 bits stay between products. In stage 3 those of 16 bits do not.
constexpr bool fp8_weights_are_kept(int64_t stage) {
  return stage < 3;
}

/// Element size of weights and activations: 4 for fp32, 2 otherwise.
int64_t compute_element_bytes(Precision precision);
/// Element size of the gradients that a backward writes. bf16 in bf16 runs, because sums are taken in fp32; 4
/// where they are summed over micro-batches in place, which a group of one does, and in fp16 runs, whose
/// range is too small for them.
int64_t gradient_element_bytes(const Settings& settings, const World& world = {});

}  // namespace satune
