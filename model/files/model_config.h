// The shape of a Llama-family model, read from config.json as transformers v4 or v5 write it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/json.h"
#include "model/files/sharing_plan.h"

namespace satune {

/// Element types a checkpoint may hold; names as in safetensors.
enum class DType { kF64, kF32, kF16, kBF16 };
int64_t dtype_bytes(DType dtype);
std::string_view safetensors_name(DType dtype);  ///< "F64" "F32" "F16" "BF16"
std::string_view torch_name(DType dtype);        ///< "float64" "float32" "float16" "bfloat16"

/// Frequencies of Llama 3.1+ (rope_type "llama3").
struct Llama3RopeScaling {
  double factor = 8.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
  bool operator==(const Llama3RopeScaling&) const = default;
};

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  std::optional<Llama3RopeScaling> rope_scaling;
  bool tie_word_embeddings = false;
  double initializer_range = 0.02;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
  std::vector<int64_t> eos_token_ids;  ///< config.json may hold one id or a list
  DType dtype = DType::kF32;           ///< torch_dtype (v4) or dtype (v5)
  SharingPlan sharing;                 ///< of an exported model (model_type "sa_llama"); else no sharing

  int64_t query_size() const { return num_attention_heads * head_dim; }
  int64_t key_value_size() const { return num_key_value_heads * head_dim; }
};

/// Reads config.json's object. `source` names the file in errors. Throws BadInput, naming the key, for
/// missing or mistyped values and for settings that are not supported: attention or mlp bias, another
/// activation, an unknown rope type, quantised weights, another model_type.
ModelConfig parse_model_config(const Json& json, std::string_view source);

/// config.json of a plain Llama or of "sa_llama" (config.sharing not empty): keys of transformers v4 and
/// v5 side by side (rope_theta + rope_scaling and rope_parameters; torch_dtype and dtype).
Json model_config_json(const ModelConfig& config);

}  // namespace satune
