// AdamW over a rank's share of the flat parameter buffers (Loshchilov & Hutter, arXiv 1711.05101), in the
// operation order of torch.optim.AdamW:
//
//   p   = p * (1 - lr * weight_decay)                  (not for norms: TensorInfo::decay)
//   m   = m + (1 - beta1) * (g - m)
//   v   = v * beta2 + (1 - beta2) * g * g
//   p   = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//
// p is an fp32 master: the weights themselves in fp32 runs, a copy of its own otherwise, from which the
// weights are rounded (to nearest even) after every update. Memory modes keep p, m and v in fewer bytes
// (trainer/optimizer_state.h). Bitwise repeatable with any number of threads and of shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "model/parameters.h"
#include "trainer/adamw_tiles.h"
#include "trainer/host_staging.h"
#include "trainer/optimizer_state.h"
#include "trainer/settings.h"
#include "trainer/shard.h"

namespace satune {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  StateFormat format;
  uint64_t seed = 0;  ///< of stochastic rounding
  /// Elements that cross between a card and state on the host at a time; a multiple of kStateTile.
  int64_t host_piece = kHostPiece;

  AdamWOptions() = default;
  explicit AdamWOptions(const Settings& settings);
};

/// By segment, the part of resident buffers that `owner` owns.
std::vector<at::Tensor> shards_of(const ParameterBuffers& buffers, const World& owner);

class AdamW {
 public:
  /// The optimizer of the share of `owner`. `weights` tells tensors and offsets; `shards` are the weights
  /// themselves, for each segment the 1-D elements shard_range(flat().numel(), owner), in any storage: that
  /// of `weights` or one of its own. Moments are zero, the master equals the weights. State lives on
  /// `state_device`: the shards' own, or the CPU for weights on a card (optimizer_offload). With split or no
  /// masters the shards are part of it: nobody else writes other values there. `weights` must outlive the
  /// optimizer.
  AdamW(const ParameterBuffers& weights, std::vector<at::Tensor> shards, const AdamWOptions& options,
        const World& owner, at::Device state_device);
  /// Of resident weights, the state beside them.
  AdamW(const ParameterBuffers& weights, const AdamWOptions& options, const World& owner = {});

  /// Applies update number `t` (1-based) of gradients * `gradient_scale` to master and weight shards.
  /// `gradients`: by segment, of the sizes of the shards; fp32 or the weights' type.
  void update(std::span<const at::Tensor> gradients, double gradient_scale, double learning_rate, int64_t t);
  /// The same with an fp32 scalar, which may be the result of work that is still queued on the card of the
  /// gradients. NaN there: nothing changes. Only state on the host waits for it.
  void update(std::span<const at::Tensor> gradients, const at::Tensor& gradient_scale, double learning_rate,
              int64_t t);
  /// The share of whole gradients.
  void update(const ParameterBuffers& gradients, double gradient_scale, double learning_rate, int64_t t);

  /// The state's part ("master", ...) of a segment: fp32, 1-D, shard_range() elements; the state itself where
  /// it is kept in fp32, a copy otherwise.
  at::Tensor part(std::string_view name, int segment) const;
  /// That of some elements of a tensor, all of which this share owns: fp32, 1-D.
  at::Tensor part(std::string_view name, size_t tensor, const ElementRange& elements) const;

  /// What a snapshot keeps of the state, and those numbers for some elements of a tensor: 1-D, of part.type.
  std::vector<StoredPart> stored_parts() const { return satune::stored_parts(options_.format); }
  at::Tensor stored(const StoredPart& part, size_t tensor, const ElementRange& elements) const;

  /// Gives `elements` of a tensor's part, as fp32 on the CPU.
  using PartReader = std::function<void(std::string_view part, size_t tensor, const ElementRange& elements,
                                        at::Tensor into)>;
  /// Sets parts of the state to what `read` gives, and the weights if the master is among them. Rounds to
  /// nearest where the state is not fp32: numbers that came out of such a state stay as they are.
  void fill(std::span<const std::string_view> parts, const PartReader& read);

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
    at::Tensor numbers;  ///< what the weights are written from: the master, or their copy on the host
    StateArrays arrays;
    std::vector<StatePiece> pieces;
    std::vector<Run> runs;

    bool all_fp32() const;
    const StateArray& array(std::string_view part) const;
  };
  void apply(std::span<const at::Tensor> gradients, const StateUpdate& update);
  /// Of gradients and weights on a card, state on the host.
  void apply_on_host(std::span<const at::Tensor> gradients, const StateUpdate& update);
  static std::vector<Run> decay_runs(const std::vector<StatePiece>& pieces);
  void make_state(SegmentState& segment, at::Device state_device) const;
  static void write_weights(const SegmentState& segment);
  static void update_on_host(SegmentState& segment, const at::Tensor& gradient, int64_t first,
                             const StateUpdate& update);

  const ParameterBuffers& weights_;
  AdamWOptions options_;
  World owner_;
  std::vector<SegmentState> segments_;
  std::unique_ptr<HostStaging> staging_;  ///< where the state of weights on a card is on the host
};

}  // namespace satune
