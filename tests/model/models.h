// Small seeded models and batches for the tests of this room.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "model/llama.h"
#include "tests/model/targets.h"
#include "tests/model_configs.h"

namespace satune::testing {

inline ModelConfig small_config(int layers = 5, bool tied = false) {
  // An explicit head_dim: not hidden / heads.
  ModelConfig config = model_configs::config_of({.vocabulary = 67,
                                                 .hidden = 48,
                                                 .ffn = 80,
                                                 .layers = layers,
                                                 .heads = 6,
                                                 .kv_heads = 2,
                                                 .head_dim = 16});
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000.0;
  config.tie_word_embeddings = tied;
  return config;
}

inline ModelConfig shared_config(std::string_view layers, AnchorRule rule, int num_layers = 8) {
  ModelConfig config = small_config(num_layers);
  config.sharing = SharingPlan::parse(layers, rule, num_layers);
  return config;
}

/// Larger deviations than a real initialisation, so that attention is far from uniform.
inline Llama make_model(const ModelConfig& config, at::ScalarType type, std::vector<bool> trained = {}) {
  Llama model(config, std::move(trained), type, at::kCPU);
  initialise_weights(model.weights(), 0.15, 7);
  for (const TensorInfo& tensor : model.table().tensors()) {
    // Norm weights off 1, so that their gradients are tested for real.
    const at::Tensor weight = model.weights().tensor(tensor.name);
    if (tensor.shape.size() == 1) {
      weight.copy_(1 + 0.1 * at::sin(at::arange(weight.size(0), at::kDouble)));
    }
  }
  return model;
}

/// Documents of the given lengths with deterministic tokens; the first `prompt` tokens of each are no
/// targets.
inline DeviceBatch make_batch(const std::vector<int64_t>& lengths, int64_t vocabulary, int64_t prompt = 2,
                              int64_t salt = 0) {
  std::vector<int64_t> tokens, targets, positions;
  DeviceBatch batch;
  batch.document_starts.push_back(0);
  for (int64_t length : lengths) {
    const int64_t first = static_cast<int64_t>(tokens.size());
    for (int64_t i = 0; i < length; ++i) {
      const int64_t place = first + i + salt;
      tokens.push_back((place * place * 31 + place * 7 + 3) % vocabulary);
      positions.push_back(i);
    }
    for (int64_t i = 0; i < length; ++i) {
      const bool target = i + 1 < length && i + 1 >= prompt;
      targets.push_back(target ? tokens[first + i + 1] : -100);
    }
    batch.document_starts.push_back(static_cast<int64_t>(tokens.size()));
  }
  batch.tokens_N = at::tensor(tokens, at::kLong);
  batch.targets = targets_of(at::tensor(targets, at::kLong));
  batch.positions_N = at::tensor(positions, at::kLong);
  return batch;
}

inline std::vector<Recording> all_layers(const ModelConfig& config, Recording recording) {
  return std::vector<Recording>(config.num_hidden_layers, recording);
}

/// |a - b| / |b| in L2.
inline double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor wide = b.to(at::kDouble);
  const double difference = (a.to(at::kDouble) - wide).norm().item<double>();
  const double scale = wide.norm().item<double>();
  return scale == 0 ? difference : difference / scale;
}

}  // namespace satune::testing
