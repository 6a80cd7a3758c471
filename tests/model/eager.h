// The oracle: an eager Shared-Attention Llama that stores probabilities, written against the paper and not
// against model/, differentiated by torch's autograd. One document at a time.
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "model/llama.h"

namespace satune::eager {

using Tensors = std::map<std::string, at::Tensor>;

inline at::Tensor norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x / at::sqrt((x * x).mean(-1, true) + eps) * weight;
}

/// [T, heads, D] rotated; angles are fp32 products of position and inverse frequency.
inline at::Tensor rotate(const at::Tensor& x, const ModelConfig& config) {
  const int64_t dim = config.head_dim;
  // fp32 by definition (transformers' arithmetic), also where everything else is fp64.
  const at::Tensor exponent = at::arange(0, dim, 2, at::kFloat) / static_cast<double>(dim);
  at::Tensor inverse = 1.0 / at::pow(at::Scalar(config.rope_theta), exponent);
  if (config.rope_scaling) {
    const Llama3RopeScaling& s = *config.rope_scaling;
    const auto context = static_cast<float>(s.original_max_position_embeddings);
    const auto low = static_cast<float>(s.low_freq_factor), high = static_cast<float>(s.high_freq_factor);
    const auto factor = static_cast<float>(s.factor);
    float* frequency = inverse.data_ptr<float>();
    for (int64_t i = 0; i < dim / 2; ++i) {
      const float wavelength = static_cast<float>(2 * M_PI) / frequency[i];
      if (wavelength > context / low) {
        frequency[i] /= factor;
      } else if (wavelength >= context / high) {
        const float blend = (context / wavelength - low) / (high - low);
        frequency[i] = (1 - blend) * frequency[i] / factor + blend * frequency[i];
      }
    }
  }
  const at::Tensor angle = (at::arange(x.size(0), at::kFloat).unsqueeze(1) * inverse.unsqueeze(0))
                               .to(x.scalar_type())
                               .unsqueeze(1);
  const at::Tensor a = x.narrow(2, 0, dim / 2), b = x.narrow(2, dim / 2, dim / 2);
  return at::cat({a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()}, 2);
}

/// Probabilities [H, T, T].
inline at::Tensor probabilities(const at::Tensor& q, const at::Tensor& k) {
  const int64_t tokens = q.size(0);
  const at::Tensor wide_k = k.repeat_interleave(q.size(1) / k.size(1), 1);
  const at::Tensor scores = at::matmul(q.transpose(0, 1), wide_k.transpose(0, 1).transpose(1, 2)) /
                            std::sqrt(static_cast<double>(q.size(2)));
  const at::Tensor mask = at::ones({tokens, tokens}, at::kBool).triu(1);
  return at::softmax(scores.masked_fill(mask, -std::numeric_limits<double>::infinity()), -1);
}

/// Logits [T, V] of one document.
inline at::Tensor document_logits(const ModelConfig& config, const Tensors& weights,
                                  const at::Tensor& tokens) {
  at::Tensor x = weights.at("model.embed_tokens.weight").index_select(0, tokens);
  const int64_t count = tokens.size(0), dim = config.head_dim;
  std::map<int, at::Tensor> stored;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto weight = [&](const char* name) {
      return weights.at(fmt::format("model.layers.{}.{}.weight", layer, name));
    };
    const auto project = [&](const at::Tensor& in, const char* name) {
      return at::matmul(in, weight(name).t()).view({count, -1, dim});
    };
    const at::Tensor normed = norm(x, weight("input_layernorm"), config.rms_norm_eps);
    const int source = config.sharing.source(layer);
    if (source == layer) {
      stored[layer] = probabilities(rotate(project(normed, "self_attn.q_proj"), config),
                                    rotate(project(normed, "self_attn.k_proj"), config));
    }
    const at::Tensor v = project(normed, "self_attn.v_proj")
                             .repeat_interleave(config.num_attention_heads / config.num_key_value_heads, 1);
    const at::Tensor attended = at::matmul(stored.at(source), v.transpose(0, 1)).transpose(0, 1).flatten(1);
    x = x + at::matmul(attended, weight("self_attn.o_proj").t());
    const at::Tensor post = norm(x, weight("post_attention_layernorm"), config.rms_norm_eps);
    const at::Tensor gate = at::matmul(post, weight("mlp.gate_proj").t());
    const at::Tensor up = at::matmul(post, weight("mlp.up_proj").t());
    x = x + at::matmul(gate / (1 + at::exp(-gate)) * up, weight("mlp.down_proj").t());
  }
  const at::Tensor head =
      weights.at(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  return at::matmul(norm(x, weights.at("model.norm.weight"), config.rms_norm_eps), head.t());
}

/// Sum of -log p over the batch's targets.
inline at::Tensor loss_sum(const ModelConfig& config, const Tensors& weights, const DeviceBatch& batch) {
  at::Tensor total = at::zeros({}, weights.begin()->second.options());
  const at::Tensor targets_N = at::full({batch.tokens_N.size(0)}, -100, at::kLong)
                                   .index_copy(0, batch.targets.rows_M, batch.targets.ids_M);
  for (size_t i = 0; i + 1 < batch.document_starts.size(); ++i) {
    const int64_t start = batch.document_starts[i], length = batch.document_starts[i + 1] - start;
    const at::Tensor logits = document_logits(config, weights, batch.tokens_N.narrow(0, start, length));
    const at::Tensor targets = targets_N.narrow(0, start, length);
    const at::Tensor rows = targets.ge(0).nonzero().squeeze(1);
    const at::Tensor chosen = at::log_softmax(logits.index_select(0, rows), -1)
                                  .gather(1, targets.index_select(0, rows).unsqueeze(1));
    total = total - chosen.sum();
  }
  return total;
}

/// The weights of a model as leaves that require gradients.
inline Tensors leaves(const Llama& model) {
  Tensors result;
  for (const TensorInfo& tensor : model.table().tensors()) {
    result[tensor.name] = model.weights().tensor(tensor.name).detach().clone().requires_grad_(true);
  }
  return result;
}

}  // namespace satune::eager
