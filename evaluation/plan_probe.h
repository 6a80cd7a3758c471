// A dense model under any sharing plan: its weights are loaded once and the plan changes from pass to pass.
// What lies below the first shared layer is the same under every plan, and is computed once per batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/layer.h"
#include "model/llama.h"

namespace satune {

/// heads[h]: the anchor's query head whose weights query head h of a shared layer uses; empty = head for
/// head.
using HeadMap = std::vector<int64_t>;

/// What the layers of one pass read, by layer.
struct LayerTraces {
  std::vector<at::Tensor> q_NHD, k_NKD;    ///< post-RoPE; a shared layer's are its anchor's
  std::vector<at::Tensor> hidden_NC = {};  ///< inputs, and after them the last layer's output: one more
};

/// One thread at a time. Forward passes only, through layer_forward().
class PlanProbe {
 public:
  /// The model must outlive the probe. One that shares attention already can be traced, under its own plan,
  /// but takes no other plan.
  explicit PlanProbe(const Llama& model);

  /// Runs the batch under the model's own plan and keeps its traces: layers * N * (C + (H + K) * D) elements.
  void start(DeviceBatch batch);
  const DeviceBatch& batch() const { return batch_; }
  const LayerTraces& traces() const { return traces_; }

  /// -log p per token [N] (0 without a target; fp32, fp64 for fp64 models) under the model's own plan.
  at::Tensor token_losses() const { return losses(traces_.hidden_NC.back()); }
  /// The same with direct sharing under `plan`; beside the traces only one anchor's q and k are kept.
  /// `heads`, by layer, permutes the heads of shared layers; empty = none does.
  at::Tensor token_losses(const SharingPlan& plan, const std::vector<HeadMap>& heads = {}) const;

 private:
  /// A layer that computes its own attention, and one that reads its anchor's.
  struct Layer {
    LayerWeights own, shared;
  };

  at::Tensor pass(const SharingPlan& plan, const std::vector<HeadMap>& heads, int first, at::Tensor x_NC,
                  LayerTraces* kept) const;
  at::Tensor losses(const at::Tensor& x_NC) const;

  const Llama& model_;
  std::vector<Layer> layers_;
  RopeTable rope_;
  DeviceBatch batch_;
  LayerTraces traces_;
};

}  // namespace satune
