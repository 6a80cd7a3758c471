#include "model/decode.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "data/files/error.h"
#include "model/ops/attention.h"
#include "model/ops/dispatch.h"
#include "model/ops/embedding.h"
#include "model/ops/linear.h"
#include "model/ops/rms_norm.h"
#include "model/ops/swiglu.h"

namespace satune {
namespace {

/// Softmax weights of one query row over T keys: q [1, H, D], k [T, K, D] -> [K, H / K, T] in fp32 (fp64 for
/// an fp64 model). Heads of a group share their key head, so that the cache is read once and never repeated.
at::Tensor step_probabilities(const at::Tensor& q_1HD, const at::Tensor& k_TKD) {
  const int64_t K = k_TKD.size(1), D = k_TKD.size(2);
  const at::ScalarType wide = statistics_type(k_TKD.scalar_type());
  const at::Tensor q_KGD = (q_1HD.to(wide) / std::sqrt(static_cast<double>(D))).view({K, -1, D});
  return at::softmax(at::bmm(q_KGD, k_TKD.to(wide).permute({1, 2, 0})), -1);
}

/// [K, G, T] times v [T, K, D] -> [1, H * D] in v's type.
at::Tensor apply_step(const at::Tensor& probabilities_KGT, const at::Tensor& v_TKD) {
  const at::Tensor out_KGD =
      at::bmm(probabilities_KGT, v_TKD.to(probabilities_KGT.scalar_type()).transpose(0, 1));
  return out_KGD.reshape({1, -1}).to(v_TKD.scalar_type());
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
  const auto cache = [&] {
    return at::empty({capacity, config.num_key_value_heads, config.head_dim}, options);
  };
  for (int l = 0; l < config.num_hidden_layers; ++l) {
    layers_.push_back(bind_layer(weights, l, config.sharing));
    keys_.push_back(config.sharing.is_shared(l) ? at::Tensor() : cache());
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

  const Weights& weights = model_.weights();
  const at::Tensor& embedding_VC = weights.tensor("model.embed_tokens.weight");
  at::Tensor x_NC = embedding_forward(embedding_VC, ids);
  std::vector<SpanInput> span_inputs(layers_.size());
  const auto norm = [&](const at::Tensor& x, const at::Tensor& weight) {
    return rms_norm_forward(x, weight, config.rms_norm_eps).y_NC;
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerWeights& layer = layers_[l];
    const at::Tensor attended = attention(static_cast<int>(l), norm(x_NC, weights.tensor(layer.input_norm)),
                                          positions_N, span_inputs);
    x_NC = linear_residual_forward(attended, weights.tensor(layer.output), x_NC);
    const at::Tensor gate_up = layer.gate_up.forward(norm(x_NC, weights.tensor(layer.post_attention_norm)));
    x_NC = linear_residual_forward(swiglu_forward(gate_up), weights.tensor(layer.down), x_NC);
  }
  length_ += N;
  const at::Tensor last_1C = norm(x_NC.narrow(0, N - 1, 1), weights.tensor("model.norm.weight"));
  const at::Tensor& head_VC = config.tie_word_embeddings ? embedding_VC : weights.tensor("lm_head.weight");
  return linear_forward(last_1C, head_VC).squeeze(0).to(at::kCPU, at::kFloat);
}

at::Tensor Decoder::attention(int layer, const at::Tensor& normed_NC, const at::Tensor& positions_N,
                              std::vector<SpanInput>& span_inputs) {
  const ModelConfig& config = model_.config();
  const int64_t N = normed_NC.size(0), D = config.head_dim, T = length_ + N;
  const int source = config.sharing.source(layer);
  const bool step = N == 1;  // one row of queries: its probabilities are small enough to keep
  const at::Tensor qkv = layers_[layer].qkv.forward(normed_NC);
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
    if (step) own.probabilities_KGT = step_probabilities(own.q_NHD, keys_[layer].narrow(0, 0, T));
  }
  const SpanInput& used = span_inputs[source];
  if (step) return apply_step(used.probabilities_KGT, values_[layer].narrow(0, 0, T));
  return attention_forward(used.q_NHD, used.k_NKD, v_NKD, {0, N}).out_NHD.reshape({N, config.query_size()});
}

int64_t Decoder::bytes_per_token() const {
  return kv_cache_bytes_per_token(model_.config(),
                                  model_.weights().tensor("model.norm.weight").element_size());
}

}  // namespace satune
