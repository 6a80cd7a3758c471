#include "evaluation/plan_probe.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "model/ops/embedding.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"

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

/// What a shared layer with assigned heads reads. Permuted heads need not keep to their groups, so every
/// query head gets a key of its own.
LayerRecord assigned(const LayerRecord& anchor, const HeadMap& heads) {
  const at::Tensor map_H = at::tensor(at::IntArrayRef(heads), at::kLong).to(anchor.q_NHD.device());
  const int64_t group = anchor.q_NHD.size(1) / anchor.k_NKD.size(1);
  LayerRecord record;
  record.q_NHD = anchor.q_NHD.index_select(1, map_H);
  record.k_NKD = anchor.k_NKD.repeat_interleave(group, 1).index_select(1, map_H);
  return record;
}

}  // namespace

PlanProbe::PlanProbe(const Llama& model) : model_(model) {
  const ModelConfig& config = model.config();
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    LayerWeights own = bind_layer(model.weights(), layer, config.sharing), shared = own;
    own.is_anchor = true;  // under some plan: its q and k are kept apart from its v
    shared.qkv = FusedProjection(model.weights(), {value_index(model.table(), layer)});
    layers_.push_back({std::move(own), std::move(shared)});
  }
}

at::Tensor PlanProbe::pass(const SharingPlan& plan, const std::vector<HeadMap>& heads, int first,
                           at::Tensor x_NC, LayerTraces* kept) const {
  const LayerContext context{model_.config(), model_.weights(), rope_, batch_, model_.attention()};
  int source = first - 1;
  LayerRecord anchor;  // the last layer that computed its own q and k: that of any span above it
  if (first > 0) {
    anchor.q_NHD = traces_.q_NHD[source];
    anchor.k_NKD = traces_.k_NKD[source];
  }
  for (int layer = first; layer < plan.num_layers(); ++layer) {
    if (kept != nullptr) kept->hidden_NC.push_back(x_NC);
    LayerRecord record;
    if (plan.is_shared(layer)) {
      TORCH_CHECK(plan.source(layer) == source, "layer ", layer, " does not read the layer before its span");
      const bool permuted = !heads.empty() && !heads[layer].empty();
      const LayerRecord read = permuted ? assigned(anchor, heads[layer]) : anchor;
      x_NC = layer_forward(context, layers_[layer].shared, layer, x_NC, &read, record);
    } else {
      x_NC = layer_forward(context, layers_[layer].own, layer, x_NC, nullptr, record);
      source = layer;
      anchor.q_NHD = record.q_NHD;
      anchor.k_NKD = record.k_NKD;
    }
    if (kept == nullptr) continue;
    kept->q_NHD.push_back(anchor.q_NHD);
    kept->k_NKD.push_back(anchor.k_NKD);
  }
  if (kept != nullptr) kept->hidden_NC.push_back(x_NC);
  return x_NC;
}

void PlanProbe::start(DeviceBatch batch) {
  const ModelConfig& config = model_.config();
  const Weights& weights = model_.weights();
  batch_ = std::move(batch);
  const int64_t longest = batch_.positions_N.max().item<int64_t>() + 1;
  if (!rope_.cos_PD2.defined() || rope_.cos_PD2.size(0) < longest)
    rope_ = make_rope_table(config, longest, weights.type(), weights.device());
  traces_ = {};
  pass(config.sharing, {}, 0, embedding_forward(weights.tensor("model.embed_tokens.weight"), batch_.tokens_N),
       &traces_);
}

at::Tensor PlanProbe::token_losses(const SharingPlan& plan, const std::vector<HeadMap>& heads) const {
  TORCH_CHECK(model_.config().sharing.empty(), "only a dense model takes another plan");
  const int first = first_shared_layer(plan);
  if (first == plan.num_layers()) return token_losses();
  return losses(pass(plan, heads, first, traces_.hidden_NC[first], nullptr));
}

at::Tensor PlanProbe::losses(const at::Tensor& x_NC) const {
  const Weights& weights = model_.weights();
  const at::Tensor normed_NC =
      rms_norm_forward(x_NC, weights.tensor("model.norm.weight"), model_.config().rms_norm_eps).y_NC;
  const char* head = model_.config().tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  at::Tensor losses_M;
  linear_cross_entropy_forward(normed_NC, weights.tensor(head), batch_.targets, &losses_M);
  return losses_by_row(losses_M, batch_.targets, normed_NC.size(0));
}

}  // namespace satune
