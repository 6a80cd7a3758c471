#include "model/files/model_config.h"

#include <cmath>
#include <limits>

#include "data/files/error.h"
#include "model/files/json_fields.h"

namespace satune {
namespace {

// Bounds that no Llama reaches; within them no product of two sizes overflows.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxLayers = 4096;

struct DTypeName {
  DType dtype;
  int64_t bytes;
  std::string_view safetensors, torch;
};

constexpr DTypeName kDTypes[] = {{DType::kF64, 8, "F64", "float64"},
                                 {DType::kF32, 4, "F32", "float32"},
                                 {DType::kF16, 2, "F16", "float16"},
                                 {DType::kBF16, 2, "BF16", "bfloat16"}};

const DTypeName& names_of(DType dtype) {
  for (const DTypeName& names : kDTypes) {
    if (names.dtype == dtype) return names;
  }
  throw std::logic_error("unknown DType");
}

// Settings that change what the network computes and that this program does not have: refused unless they
// say what it does anyway.
void refuse_unsupported(const JsonFields& fields) {
  const std::string model_type = fields.string("model_type");
  if (model_type != "llama" && model_type != "sa_llama") {
    fields.fail("model_type", "\"llama\" or \"sa_llama\"");
  }
  for (const char* key : {"attention_bias", "mlp_bias", "rope_interleaved"}) {
    if (fields.boolean(key, false)) fields.fail(key, "false (not supported)");
  }
  if (fields.string("hidden_act", "silu") != "silu") fields.fail("hidden_act", "\"silu\"");
  if (fields.number("attention_dropout", 0.0) != 0.0) fields.fail("attention_dropout", "0 (not supported)");
  if (fields.number("partial_rotary_factor", 1.0) != 1.0) {
    fields.fail("partial_rotary_factor", "1 (not supported)");
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.fail("quantization_config",
                "nothing: weights in F32, F16 or BF16 (quantised ones are not supported)");
  }
}

// What one of the two spellings of the RoPE settings says.
struct Rope {
  std::optional<double> theta;
  std::optional<Llama3RopeScaling> scaling;
  bool operator==(const Rope&) const = default;
};

// `rope_scaling` of transformers v4 or `rope_parameters` of v5.
Rope parse_rope(const JsonFields& fields, bool type_required) {
  Rope rope;
  if (fields.find("rope_theta") != nullptr) rope.theta = fields.positive_number("rope_theta");
  if (fields.number("partial_rotary_factor", 1.0) != 1.0) {
    fields.fail("partial_rotary_factor", "1 (not supported)");
  }
  // "type" is the older name.
  const char* type_key = fields.find("rope_type") == nullptr && fields.find("type") ? "type" : "rope_type";
  const std::string type = type_required ? fields.string(type_key) : fields.string(type_key, "default");
  if (type == "default") return rope;
  if (type != "llama3")
    fields.fail(type_key, "\"default\" or \"llama3\" (no other RoPE scaling is supported)");
  Llama3RopeScaling scaling;
  scaling.factor = fields.positive_number("factor");
  scaling.low_freq_factor = fields.positive_number("low_freq_factor");
  scaling.high_freq_factor = fields.positive_number("high_freq_factor");
  scaling.original_max_position_embeddings = fields.integer("original_max_position_embeddings", 1, kMaxSize);
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    fields.fail("high_freq_factor", fmt::format("more than low_freq_factor {}", scaling.low_freq_factor));
  }
  rope.scaling = scaling;
  return rope;
}

void read_rope(const JsonFields& fields, ModelConfig& config) {
  Rope old_keys;
  if (fields.find("rope_scaling") != nullptr) old_keys = parse_rope(fields.object("rope_scaling"), true);
  if (fields.find("rope_theta") != nullptr) old_keys.theta = fields.positive_number("rope_theta");
  const bool has_old = old_keys.theta || fields.find("rope_scaling") != nullptr;
  Rope rope = old_keys;
  if (fields.find("rope_parameters") != nullptr) {
    rope = parse_rope(fields.object("rope_parameters"), false);
    if (!rope.theta) rope.theta = old_keys.theta;
    // transformers v4 reads one, v5 the other: a file in which they differ means two models.
    if (has_old && old_keys.theta && rope.theta != old_keys.theta) {
      throw bad_input(fields.where("rope_theta"), fmt::format("{}", *old_keys.theta),
                      fmt::format("{} as in rope_parameters", *rope.theta));
    }
    if (fields.find("rope_scaling") != nullptr && rope.scaling != old_keys.scaling) {
      fields.fail("rope_scaling", "the same settings as in rope_parameters");
    }
  }
  config.rope_theta = rope.theta.value_or(10000.0);
  config.rope_scaling = rope.scaling;
}

DType parse_dtype(const JsonFields& fields) {
  // transformers prefers `dtype` where a file has both.
  const char* key = fields.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  std::string text = fields.string(key, "float32");
  if (text.starts_with("torch.")) text.erase(0, 6);
  for (const DTypeName& names : kDTypes) {
    if (text == names.torch) return names.dtype;
  }
  fields.fail(key, "\"float32\", \"float16\", \"bfloat16\" or \"float64\"");
}

void read_sizes(const JsonFields& fields, ModelConfig& config) {
  config.vocab_size = fields.integer("vocab_size", 1, kMaxSize);
  config.hidden_size = fields.integer("hidden_size", 1, kMaxSize);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxSize);
  config.num_hidden_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_attention_heads = fields.integer("num_attention_heads", 1, kMaxSize);
  config.num_key_value_heads = fields.integer("num_key_value_heads", 1, kMaxSize, config.num_attention_heads);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    fields.fail("num_key_value_heads",
                fmt::format("a divisor of num_attention_heads {}", config.num_attention_heads));
  }
  if (fields.find("head_dim") == nullptr && config.hidden_size % config.num_attention_heads != 0) {
    fields.fail("hidden_size", fmt::format("a multiple of num_attention_heads {} (or an explicit head_dim)",
                                           config.num_attention_heads));
  }
  config.head_dim = fields.integer("head_dim", 1, kMaxSize, config.hidden_size / config.num_attention_heads);
  if (config.head_dim % 2 != 0) {
    throw bad_input(fields.where("head_dim"), fmt::format("{}", config.head_dim),
                    "an even number (RoPE turns pairs)");
  }
  if (config.query_size() > kMaxSize) {
    throw bad_input(fields.where("head_dim"),
                    fmt::format("{} heads of {}", config.num_attention_heads, config.head_dim),
                    fmt::format("at most {} in all", kMaxSize));
  }
  config.max_position_embeddings = fields.integer("max_position_embeddings", 1, kMaxSize, 2048);
}

void read_tokens(const JsonFields& fields, ModelConfig& config) {
  if (fields.find("bos_token_id") != nullptr)
    config.bos_token_id = fields.integer("bos_token_id", 0, kMaxSize);
  // Early conversions of Llama write -1 for "none".
  if (fields.find("pad_token_id") != nullptr) {
    const int64_t pad = fields.integer("pad_token_id", -1, kMaxSize);
    if (pad >= 0) config.pad_token_id = pad;
  }
  config.eos_token_ids = fields.token_ids("eos_token_id");
}

SharingPlan parse_sharing(const JsonFields& fields, int num_layers, bool required) {
  if (fields.find("sharing") == nullptr) {
    if (required) fields.fail("sharing", "an object {\"layers\", \"anchor\"} (model_type is \"sa_llama\")");
    return SharingPlan(num_layers);
  }
  const JsonFields sharing = fields.object("sharing");
  sharing.allow_only({"layers", "anchor"});
  const std::string layers = sharing.string("layers"), anchor = sharing.string("anchor", "before");
  SharingPlan plan;
  try {
    plan = SharingPlan::parse(layers, parse_anchor_rule(anchor), num_layers);
  } catch (const BadInput& error) {
    throw BadInput(fmt::format("{}: {}", fields.where("sharing"), error.what()));
  }
  if (const Json* sources = fields.find("attention_sources")) {
    Json expected = Json::array();
    for (int layer = 0; layer < num_layers; ++layer) expected.push_back(plan.source(layer));
    if (*sources != expected) {
      throw bad_input(
          fields.where("attention_sources"), sources->dump(),
          fmt::format("{} as sharing \"{}\", anchor \"{}\" says", expected.dump(), layers, anchor));
    }
  }
  return plan;
}

Json optional_json(const std::optional<int64_t>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json rope_scaling_json(const Llama3RopeScaling& scaling) {
  return {{"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", scaling.low_freq_factor},
          {"high_freq_factor", scaling.high_freq_factor},
          {"original_max_position_embeddings", scaling.original_max_position_embeddings}};
}

void write_identity(const ModelConfig& config, Json& json) {
  if (config.sharing.empty()) {
    json["architectures"] = Json::array({"LlamaForCausalLM"});
    json["model_type"] = "llama";
    return;
  }
  json["architectures"] = Json::array({"SALlamaForCausalLM"});
  json["model_type"] = "sa_llama";
  json["auto_map"] = {{"AutoConfig", "configuration_sa_llama.SALlamaConfig"},
                      {"AutoModel", "modeling_sa_llama.SALlamaModel"},
                      {"AutoModelForCausalLM", "modeling_sa_llama.SALlamaForCausalLM"}};
  json["sharing"] = {{"layers", config.sharing.layers_text()}, {"anchor", to_string(config.sharing.rule())}};
  json["attention_sources"] = Json::array();
  for (int layer = 0; layer < config.sharing.num_layers(); ++layer) {
    json["attention_sources"].push_back(config.sharing.source(layer));
  }
}

}  // namespace

int64_t dtype_bytes(DType dtype) {
  return names_of(dtype).bytes;
}
std::string_view safetensors_name(DType dtype) {
  return names_of(dtype).safetensors;
}
std::string_view torch_name(DType dtype) {
  return names_of(dtype).torch;
}

ModelConfig parse_model_config(const Json& json, std::string_view source) {
  const JsonFields fields(json, std::string(source));
  refuse_unsupported(fields);
  ModelConfig config;
  read_sizes(fields, config);
  config.rms_norm_eps = fields.positive_number("rms_norm_eps", config.rms_norm_eps);
  read_rope(fields, config);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.initializer_range = fields.positive_number("initializer_range", config.initializer_range);
  read_tokens(fields, config);
  config.dtype = parse_dtype(fields);
  config.sharing = parse_sharing(fields, static_cast<int>(config.num_hidden_layers),
                                 fields.string("model_type") == "sa_llama");
  return config;
}

Json model_config_json(const ModelConfig& config) {
  Json json;
  write_identity(config, json);
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.num_hidden_layers;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_key_value_heads"] = config.num_key_value_heads;
  json["head_dim"] = config.head_dim;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["hidden_act"] = "silu";
  json["attention_bias"] = false;
  json["attention_dropout"] = 0.0;
  json["mlp_bias"] = false;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["rope_theta"] = config.rope_theta;
  json["rope_scaling"] = config.rope_scaling ? rope_scaling_json(*config.rope_scaling) : Json(nullptr);
  json["rope_parameters"] =
      config.rope_scaling ? rope_scaling_json(*config.rope_scaling) : Json{{"rope_type", "default"}};
  json["rope_parameters"]["rope_theta"] = config.rope_theta;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["initializer_range"] = config.initializer_range;
  json["use_cache"] = true;
  json["bos_token_id"] = optional_json(config.bos_token_id);
  json["pad_token_id"] = optional_json(config.pad_token_id);
  json["eos_token_id"] = token_ids_json(config.eos_token_ids);
  json["torch_dtype"] = torch_name(config.dtype);
  json["dtype"] = torch_name(config.dtype);
  return json;
}

}  // namespace satune
