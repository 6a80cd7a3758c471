#include "model/files/tensor_table.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace satune {

int64_t TensorInfo::numel() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

TensorTable::TensorTable(const ModelConfig& config)
    : num_segments_(static_cast<int>(config.num_hidden_layers) + 2) {
  const int64_t V = config.vocab_size, C = config.hidden_size, F = config.intermediate_size;
  const int64_t Q = config.query_size(), KV = config.key_value_size();
  int segment = 0;
  const auto add = [&](std::string name, std::vector<int64_t> shape, TensorRole role) {
    const bool decay = shape.size() > 1;  // matrices; norms are vectors
    tensors_.push_back({std::move(name), std::move(shape), role, segment, decay});
  };

  add("model.embed_tokens.weight", {V, C}, TensorRole::kEmbedding);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    segment = layer + 1;
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    if (config.sharing.empty() || !config.sharing.is_shared(layer)) {
      add(prefix + "self_attn.q_proj.weight", {Q, C}, TensorRole::kQuery);
      add(prefix + "self_attn.k_proj.weight", {KV, C}, TensorRole::kKey);
    }
    add(prefix + "self_attn.v_proj.weight", {KV, C}, TensorRole::kValue);
    add(prefix + "self_attn.o_proj.weight", {C, Q}, TensorRole::kOutput);
    add(prefix + "mlp.gate_proj.weight", {F, C}, TensorRole::kGate);
    add(prefix + "mlp.up_proj.weight", {F, C}, TensorRole::kUp);
    add(prefix + "mlp.down_proj.weight", {C, F}, TensorRole::kDown);
    add(prefix + "input_layernorm.weight", {C}, TensorRole::kInputNorm);
    add(prefix + "post_attention_layernorm.weight", {C}, TensorRole::kPostAttentionNorm);
  }
  segment = num_segments_ - 1;
  if (!config.tie_word_embeddings) add("lm_head.weight", {V, C}, TensorRole::kHead);
  add("model.norm.weight", {C}, TensorRole::kFinalNorm);
  for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

std::span<const TensorInfo> TensorTable::segment(int index) const {
  const auto first_from = [&](int segment) {
    return std::partition_point(tensors_.begin(), tensors_.end(),
                                [&](const TensorInfo& tensor) { return tensor.segment < segment; });
  };
  return {first_from(index), first_from(index + 1)};
}

const TensorInfo* TensorTable::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

int64_t TensorTable::parameter_count() const {
  return std::transform_reduce(tensors_.begin(), tensors_.end(), int64_t{0}, std::plus<>(),
                               [](const TensorInfo& tensor) { return tensor.numel(); });
}

}  // namespace satune
