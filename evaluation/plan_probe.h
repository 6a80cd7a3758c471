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

/// One thread at a time. Forward passes only.
class PlanProbe {
 public:
  /// The model must outlive the probe. One that shares attention already can be traced, under its own plan,
  /// but takes no other plan.
  explicit PlanProbe(const Llama& model);

  /// What a layer reads: its input, and the post-RoPE queries and keys that its weights come from (those of
  /// its anchor where it shares).
  struct Trace {
    at::Tensor x_NC, q_NHD, k_NKD;
  };

  /// Runs the batch under the model's own plan and keeps the traces: layers * N * (C + (H + K) * D) elements.
  void start(DeviceBatch batch);
  const DeviceBatch& batch() const { return batch_; }
  const std::vector<Trace>& traces() const { return traces_; }
  /// The last layer's output, before the final norm.
  const at::Tensor& output_NC() const { return output_NC_; }

  /// -log p per token [N] (0 without a target; fp32, fp64 for fp64 models) under the model's own plan.
  at::Tensor token_losses() const { return losses(output_NC_); }
  /// The same with direct sharing under `plan`. `heads`, by layer, permutes the heads of shared layers; empty
  /// = none does.
  at::Tensor token_losses(const SharingPlan& plan, const std::vector<HeadMap>& heads = {}) const;

 private:
  struct Layer {
    LayerWeights weights;  ///< under the model's own plan
    FusedProjection v;     ///< alone, for a layer that shares
  };
  struct Heads {
    at::Tensor q_NHD, k_NKD, v_NKD;
  };

  Trace project(int layer, const at::Tensor& x_NC, at::Tensor& v_NKD) const;
  at::Tensor shared_values(int layer, const at::Tensor& x_NC) const;
  at::Tensor finish(int layer, const at::Tensor& x_NC, const Heads& heads) const;
  at::Tensor losses(const at::Tensor& x_NC) const;
  at::Tensor norm(const at::Tensor& x_NC, const at::Tensor& weight_C) const;

  const Llama& model_;
  std::vector<Layer> layers_;
  RopeTable rope_;
  DeviceBatch batch_;
  std::vector<Trace> traces_;
  at::Tensor output_NC_;
};

}  // namespace satune
