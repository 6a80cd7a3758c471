// AdamW over a rank's share of the flat parameter buffers (Loshchilov & Hutter, arXiv 1711.05101), in the
// operation order of torch.optim.AdamW:
//
//   p   = p * (1 - lr * weight_decay)                  (not for norms: TensorInfo::decay)
//   m   = m + (1 - beta1) * (g - m)
//   v   = v * beta2 + (1 - beta2) * g * g
//   p   = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//
// p is an fp32 master: the weights themselves in fp32 runs, a copy of its own otherwise, from which the
// weights are rounded (to nearest even) after every update. Bitwise repeatable with any number of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "model/parameters.h"
#include "trainer/settings.h"
#include "trainer/shard.h"

namespace satune {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;

  AdamWOptions() = default;
  explicit AdamWOptions(const Settings& settings);
};

/// Names of the state's parts, in the order they are stored.
inline constexpr std::string_view kOptimizerParts[] = {"master", "exp_avg", "exp_avg_sq"};

/// By segment, the part of resident buffers that `owner` owns.
std::vector<at::Tensor> shards_of(const ParameterBuffers& buffers, const World& owner);

class AdamW {
 public:
  /// The optimizer of the share of `owner`. `weights` tells tensors and offsets; `shards` are the weights
  /// themselves, for each segment the 1-D elements shard_range(flat().numel(), owner), in any storage: that
  /// of `weights` or one of its own. Moments are zero, the master a copy of the weights. State lives on
  /// `state_device`: the shards' own, or the CPU for weights on a card (optimizer_offload). `weights` must
  /// outlive the optimizer.
  AdamW(const ParameterBuffers& weights, std::vector<at::Tensor> shards, const AdamWOptions& options,
        const World& owner, at::Device state_device);
  /// Of resident weights, the state beside them.
  AdamW(const ParameterBuffers& weights, const AdamWOptions& options, const World& owner = {});

  /// Applies update number `t` (1-based) of gradients * `gradient_scale` to master and weight shards.
  /// `gradients`: by segment, of the sizes of the shards; fp32 or the weights' type.
  void update(std::span<const at::Tensor> gradients, double gradient_scale, double learning_rate, int64_t t);
  /// The share of whole gradients.
  void update(const ParameterBuffers& gradients, double gradient_scale, double learning_rate, int64_t t);

  /// The state's part ("master", ...) of a segment: fp32, 1-D, shard_range() elements.
  const at::Tensor& part(std::string_view name, int segment) const;
  /// That of some elements of a tensor, all of which this share owns: fp32, 1-D.
  at::Tensor part(std::string_view name, size_t tensor, const ElementRange& elements) const;
  /// Rounds the weights from the master; to be called after the master was written from outside.
  void write_weights();

  const ParameterBuffers& weights() const { return weights_; }
  /// Whose share this is: {0, 1} owns everything.
  const World& owner() const { return owner_; }

 private:
  /// Neighbouring elements of a share that all decay or all do not.
  struct Run {
    int64_t begin, end;
    bool decay;
  };
  struct SegmentState {
    ElementRange range;  ///< of the segment's flat buffer
    at::Tensor shard;    ///< of the weights, in the compute type
    at::Tensor master, exp_avg, exp_avg_sq;
    std::vector<Run> runs;
  };
  static std::vector<Run> decay_runs(const ParameterBuffers& weights, int segment, const World& owner);

  const ParameterBuffers& weights_;
  AdamWOptions options_;
  World owner_;
  std::vector<SegmentState> segments_;
};

}  // namespace satune
