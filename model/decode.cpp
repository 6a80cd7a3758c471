#include "model/decode.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <string>

#include "data/files/error.h"
#include "model/ops/attention.h"
#include "model/ops/embedding.h"
#include "model/ops/linear.h"
#include "model/ops/rms_norm.h"
#include "model/ops/swiglu.h"

namespace satune {
namespace {

/// Matrices that lie behind each other in a weight buffer as one matrix; a copy where they do not (one
/// frozen, one trained).
at::Tensor fused_rows(const std::vector<at::Tensor>& parts) {
  int64_t rows = 0;
  bool adjacent = true;
  for (size_t i = 0; i < parts.size(); ++i) {
    rows += parts[i].size(0);
    if (i > 0)
      adjacent = adjacent && parts[i].is_alias_of(parts[0]) &&
                 parts[i].storage_offset() == parts[i - 1].storage_offset() + parts[i - 1].numel();
  }
  if (!adjacent) return at::cat(parts);
  return parts[0].as_strided({rows, parts[0].size(1)}, {parts[0].size(1), 1}, parts[0].storage_offset());
}

}  // namespace

int64_t kv_cache_bytes_per_token(const ModelConfig& config, int64_t element_bytes) {
  const int64_t tensors = 2 * config.num_hidden_layers - config.sharing.num_shared();
  return tensors * config.key_value_size() * element_bytes;
}

Decoder::Decoder(const Llama& model, int64_t capacity) : model_(model), capacity_(capacity) {
  const ModelConfig& config = model.config();
  const Weights& weights = model.weights();
  const auto options = at::TensorOptions(weights.type()).device(weights.device());
  rope_ = make_rope_table(config, capacity, weights.type(), weights.device());
  embedding_VC_ = weights.tensor("model.embed_tokens.weight");
  final_norm_C_ = weights.tensor("model.norm.weight");
  head_VC_ = config.tie_word_embeddings ? embedding_VC_ : weights.tensor("lm_head.weight");
  for (int l = 0; l < config.num_hidden_layers; ++l) {
    const auto tensor = [&](std::string_view name) -> const at::Tensor& {
      return weights.tensor(fmt::format("model.layers.{}.{}.weight", l, name));
    };
    const bool shared = config.sharing.is_shared(l);
    std::vector<at::Tensor> projections;
    if (!shared) projections = {tensor("self_attn.q_proj"), tensor("self_attn.k_proj")};
    projections.push_back(tensor("self_attn.v_proj"));
    layers_.push_back({tensor("input_layernorm"), fused_rows(projections), tensor("self_attn.o_proj"),
                       tensor("post_attention_layernorm"),
                       fused_rows({tensor("mlp.gate_proj"), tensor("mlp.up_proj")}),
                       tensor("mlp.down_proj")});
    const auto cache = [&] {
      return at::empty({capacity, config.num_key_value_heads, config.head_dim}, options);
    };
    keys_.push_back(shared ? at::Tensor() : cache());
    values_.push_back(cache());
  }
}

void Decoder::check(std::span<const int32_t> tokens) const {
  if (tokens.empty()) throw BadInput("decoding: found no tokens to append, expected at least one");
  if (length_ + static_cast<int64_t>(tokens.size()) > capacity_)
    throw bad_input("decoding", fmt::format("{} tokens", length_ + static_cast<int64_t>(tokens.size())),
                    fmt::format("at most {}, the capacity of the KV cache", capacity_));
  for (const int32_t token : tokens)
    if (token < 0 || token >= model_.config().vocab_size)
      throw bad_input("decoding", fmt::format("token id {}", token),
                      fmt::format("an id below the model's vocab_size {}", model_.config().vocab_size));
}

at::Tensor Decoder::append(std::span<const int32_t> tokens) {
  check(tokens);
  if (length_ == 0 || tokens.size() == 1) return forward(tokens);
  at::Tensor logits_V;
  for (size_t i = 0; i < tokens.size(); ++i) logits_V = forward(tokens.subspan(i, 1));
  return logits_V;
}

at::Tensor Decoder::forward(std::span<const int32_t> tokens) {
  const ModelConfig& config = model_.config();
  const auto N = static_cast<int64_t>(tokens.size());
  const at::Device device = model_.weights().device();
  const at::Tensor ids =
      at::tensor(at::IntArrayRef(std::vector<int64_t>(tokens.begin(), tokens.end())), at::kLong).to(device);
  const at::Tensor positions_N =
      at::arange(length_, length_ + N, at::TensorOptions(at::kLong).device(device));

  at::Tensor x_NC = embedding_forward(embedding_VC_, ids);
  std::vector<SpanInput> span_inputs(layers_.size());
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    const at::Tensor normed_NC = rms_norm_forward(x_NC, layer.input_norm_C, config.rms_norm_eps).y_NC;
    const at::Tensor attended = attention(static_cast<int>(l), normed_NC, positions_N, span_inputs);
    x_NC = linear_residual_forward(attended, layer.output, x_NC);
    const at::Tensor mlp_in = rms_norm_forward(x_NC, layer.post_attention_norm_C, config.rms_norm_eps).y_NC;
    x_NC = linear_residual_forward(swiglu_forward(linear_forward(mlp_in, layer.gate_up)), layer.down, x_NC);
  }
  length_ += N;
  const at::Tensor last_1C =
      rms_norm_forward(x_NC.narrow(0, N - 1, 1), final_norm_C_, config.rms_norm_eps).y_NC;
  return linear_forward(last_1C, head_VC_).squeeze(0).to(at::kCPU, at::kFloat);
}

at::Tensor Decoder::attention(int layer, const at::Tensor& normed_NC, const at::Tensor& positions_N,
                              std::vector<SpanInput>& span_inputs) {
  const ModelConfig& config = model_.config();
  const int64_t N = normed_NC.size(0), D = config.head_dim, T = length_ + N;
  const int source = config.sharing.source(layer);
  const bool step = N == 1;  // one row of queries: its probabilities are small enough to keep
  const at::Tensor qkv = linear_forward(normed_NC, layers_[layer].qkv);
  const int64_t v_begin = qkv.size(1) - config.key_value_size();
  const at::Tensor v_NKD =
      qkv.narrow(1, v_begin, config.key_value_size()).view({N, config.num_key_value_heads, D});
  values_[layer].narrow(0, length_, N).copy_(v_NKD);
  if (source == layer) {
    SpanInput& own = span_inputs[layer];
    own.q_NHD = qkv.narrow(1, 0, config.query_size()).view({N, config.num_attention_heads, D});
    own.k_NKD =
        qkv.narrow(1, config.query_size(), config.key_value_size()).view({N, config.num_key_value_heads, D});
    rope_apply(own.q_NHD, positions_N, rope_, false);
    rope_apply(own.k_NKD, positions_N, rope_, false);
    keys_[layer].narrow(0, length_, N).copy_(own.k_NKD);
    if (step) own.probabilities_H1T = attention_probabilities(own.q_NHD, keys_[layer].narrow(0, 0, T), false);
  }
  const SpanInput& used = span_inputs[source];
  const at::Tensor out_NHD = step
                                 ? apply_probabilities(used.probabilities_H1T, values_[layer].narrow(0, 0, T))
                                 : attention_forward(used.q_NHD, used.k_NKD, v_NKD, {0, N}).out_NHD;
  return out_NHD.reshape({N, config.query_size()});
}

int64_t Decoder::bytes_per_token() const {
  return kv_cache_bytes_per_token(model_.config(),
                                  model_.weights().tensor("model.norm.weight").element_size());
}

}  // namespace satune
