// Configs of models for the tests of every room.
#pragma once

#include <cstdint>
#include <string>

#include "data/files/json.h"
#include "model/files/model_config.h"

namespace satune::model_configs {

struct ModelSizes {
  int64_t vocabulary, hidden, ffn, layers, heads, kv_heads, head_dim;
};

/// Without sharing; every other key has its default.
inline ModelConfig config_of(const ModelSizes& sizes) {
  ModelConfig config;
  config.vocab_size = sizes.vocabulary;
  config.hidden_size = sizes.hidden;
  config.intermediate_size = sizes.ffn;
  config.num_hidden_layers = sizes.layers;
  config.num_attention_heads = sizes.heads;
  config.num_key_value_heads = sizes.kv_heads;
  config.head_dim = sizes.head_dim;
  config.sharing = SharingPlan(static_cast<int>(sizes.layers));
  return config;
}

/// configs/arch-llama3-SIZE.json: "8b", "70b".
inline ModelConfig llama3(const std::string& size) {
  const std::string file = std::string(SATUNE_SOURCE_DIR) + "/configs/arch-llama3-" + size + ".json";
  return parse_model_config(read_json_file(file, {.allow_comments = true}), file);
}

}  // namespace satune::model_configs
