#include "evaluation/plan_probe.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "model/ops/embedding.h"
#include "model/ops/linear.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"
#include "model/ops/swiglu.h"

namespace satune {
namespace {

size_t value_index(const TensorTable& table, int layer) {
  const TensorInfo* info = table.find(fmt::format("model.layers.{}.self_attn.v_proj.weight", layer));
  TORCH_CHECK(info != nullptr, "layer ", layer, " has no v_proj");
  return static_cast<size_t>(info - table.tensors().data());
}

int first_shared_layer(const SharingPlan& plan) {
  int layer = 0;
  while (layer < plan.num_layers() && !plan.is_shared(layer)) ++layer;
  return layer;
}

/// Permuted heads need not keep to their groups, so every query head gets a key and a value of its own.
at::Tensor per_query_head(const at::Tensor& x_NKD, int64_t query_heads) {
  return x_NKD.repeat_interleave(query_heads / x_NKD.size(1), 1);
}

}  // namespace

PlanProbe::PlanProbe(const Llama& model) : model_(model) {
  const ModelConfig& config = model.config();
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    layers_.push_back({bind_layer(model.weights(), layer, config.sharing),
                       FusedProjection(model.weights(), {value_index(model.table(), layer)})});
  }
}

at::Tensor PlanProbe::norm(const at::Tensor& x_NC, const at::Tensor& weight_C) const {
  return rms_norm_forward(x_NC, weight_C, model_.config().rms_norm_eps).y_NC;
}

PlanProbe::Trace PlanProbe::project(int layer, const at::Tensor& x_NC, at::Tensor& v_NKD) const {
  const ModelConfig& config = model_.config();
  const int64_t H = config.num_attention_heads, K = config.num_key_value_heads;
  const LayerWeights& weights = layers_[layer].weights;
  const at::Tensor normed_NC = norm(x_NC, model_.weights().tensor(weights.input_norm));
  const at::Tensor qkv = weights.qkv.forward(normed_NC).view({x_NC.size(0), H + 2 * K, config.head_dim});
  rope_apply(qkv.narrow(1, 0, H + K), batch_.positions_N, rope_, false);
  v_NKD = qkv.narrow(1, H + K, K);
  return {x_NC, qkv.narrow(1, 0, H).contiguous(), qkv.narrow(1, H, K).contiguous()};
}

at::Tensor PlanProbe::shared_values(int layer, const at::Tensor& x_NC) const {
  const ModelConfig& config = model_.config();
  const at::Tensor& weight_C = model_.weights().tensor(layers_[layer].weights.input_norm);
  return layers_[layer]
      .v.forward(norm(x_NC, weight_C))
      .view({-1, config.num_key_value_heads, config.head_dim});
}

at::Tensor PlanProbe::finish(int layer, const at::Tensor& x_NC, const Heads& heads) const {
  const LayerWeights& bound = layers_[layer].weights;
  const Weights& weights = model_.weights();
  const at::Tensor attended_NHD =
      attention_forward(heads.q_NHD, heads.k_NKD, heads.v_NKD, batch_.document_starts).out_NHD;
  const at::Tensor mid_NC =
      linear_residual_forward(attended_NHD.flatten(1), weights.tensor(bound.output), x_NC);
  const at::Tensor gate_up_N2F =
      bound.gate_up.forward(norm(mid_NC, weights.tensor(bound.post_attention_norm)));
  return linear_residual_forward(swiglu_forward(gate_up_N2F), weights.tensor(bound.down), mid_NC);
}

void PlanProbe::start(DeviceBatch batch) {
  const ModelConfig& config = model_.config();
  const Weights& weights = model_.weights();
  batch_ = std::move(batch);
  const int64_t longest = batch_.positions_N.max().item<int64_t>() + 1;
  if (!rope_.cos_PD2.defined() || rope_.cos_PD2.size(0) < longest)
    rope_ = make_rope_table(config, longest, weights.type(), weights.device());
  traces_.clear();
  at::Tensor x_NC = embedding_forward(weights.tensor("model.embed_tokens.weight"), batch_.tokens_N);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    at::Tensor v_NKD;
    if (config.sharing.is_shared(layer)) {
      const Trace anchor = traces_[config.sharing.source(layer)];  // a copy: the vector grows
      traces_.push_back({x_NC, anchor.q_NHD, anchor.k_NKD});
      v_NKD = shared_values(layer, x_NC);
    } else {
      traces_.push_back(project(layer, x_NC, v_NKD));
    }
    x_NC = finish(layer, x_NC, {traces_.back().q_NHD, traces_.back().k_NKD, v_NKD});
  }
  output_NC_ = x_NC;
}

at::Tensor PlanProbe::token_losses(const SharingPlan& plan, const std::vector<HeadMap>& heads) const {
  TORCH_CHECK(model_.config().sharing.empty(), "only a dense model takes another plan");
  const int64_t H = model_.config().num_attention_heads;
  const int first = first_shared_layer(plan);
  if (first == plan.num_layers()) return token_losses();
  // Layers below `first` are those of the dense pass; above, an anchor's queries are those of this plan.
  std::vector<Trace> traces(traces_.begin(), traces_.begin() + first);
  at::Tensor x_NC = traces_[first].x_NC;
  for (int layer = first; layer < plan.num_layers(); ++layer) {
    at::Tensor v_NKD;
    if (!plan.is_shared(layer)) {
      traces.push_back(project(layer, x_NC, v_NKD));
      x_NC = finish(layer, x_NC, {traces.back().q_NHD, traces.back().k_NKD, v_NKD});
      continue;
    }
    const Trace anchor = traces[plan.source(layer)];  // a copy: the vector grows
    traces.push_back({x_NC, anchor.q_NHD, anchor.k_NKD});
    Heads used{anchor.q_NHD, anchor.k_NKD, shared_values(layer, x_NC)};
    if (!heads.empty() && !heads[layer].empty()) {
      const at::Tensor map_H = at::tensor(at::IntArrayRef(heads[layer]), at::kLong).to(x_NC.device());
      used = {used.q_NHD.index_select(1, map_H), per_query_head(used.k_NKD, H).index_select(1, map_H),
              per_query_head(used.v_NKD, H)};
    }
    x_NC = finish(layer, x_NC, used);
  }
  return losses(x_NC);
}

at::Tensor PlanProbe::losses(const at::Tensor& x_NC) const {
  const Weights& weights = model_.weights();
  const at::Tensor normed_NC = norm(x_NC, weights.tensor("model.norm.weight"));
  const char* head = model_.config().tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  at::Tensor losses_N;
  linear_cross_entropy_forward(normed_NC, weights.tensor(head), batch_.targets_N, &losses_N);
  return losses_N;
}

}  // namespace satune
