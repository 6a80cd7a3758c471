#include "model/files/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/files/error.h"
#include "model/files/hf_directory.h"
#include "tests/realdata.h"

namespace satune {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

Json minimal() {
  return parse_json(R"({"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
                        "num_hidden_layers": 4, "num_attention_heads": 8})",
                    "config.json");
}

ModelConfig parse(const Json& json) {
  return parse_model_config(json, "config.json");
}

ModelConfig parse_with(std::string_view key, Json value) {
  Json json = minimal();
  json[std::string(key)] = std::move(value);
  return parse(json);
}

std::string error_of(const Json& json) {
  try {
    parse(json);
  } catch (const BadInput& error) {
    return error.what();
  }
  return "accepted";
}

std::string error_with(std::string_view key, Json value) {
  Json json = minimal();
  json[std::string(key)] = std::move(value);
  return error_of(json);
}

Json llama3_rope() {
  return parse_json(
      R"({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192})",
      "rope");
}

TEST(ModelConfig, DefaultsAreTransformers) {
  const ModelConfig config = parse(minimal());
  EXPECT_EQ(config.num_key_value_heads, 8);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_FALSE(config.rope_scaling);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.initializer_range, 0.02);
  EXPECT_FALSE(config.bos_token_id);
  EXPECT_FALSE(config.pad_token_id);
  EXPECT_THAT(config.eos_token_ids, IsEmpty());
  EXPECT_EQ(config.dtype, DType::kF32);
  EXPECT_TRUE(config.sharing.empty());
  EXPECT_EQ(config.sharing.num_layers(), 4);
}

// rival: list-valued eos_token_id refused.
TEST(ModelConfig, EosMayBeOneIdOrAList) {
  EXPECT_THAT(parse_with("eos_token_id", 2).eos_token_ids, ElementsAre(2));
  EXPECT_THAT(parse_with("eos_token_id", {5, 9}).eos_token_ids, ElementsAre(5, 9));
  EXPECT_THAT(parse_with("eos_token_id", nullptr).eos_token_ids, IsEmpty());
  EXPECT_THAT(error_with("eos_token_id", "</s>"), HasSubstr("key eos_token_id: found the string \"</s>\""));
  EXPECT_THAT(error_with("eos_token_id", {1, -1}), HasSubstr("key eos_token_id"));
  EXPECT_FALSE(parse_with("pad_token_id", -1).pad_token_id);
  EXPECT_EQ(parse_with("pad_token_id", 0).pad_token_id, 0);
}

TEST(ModelConfig, HeadDimMayBeExplicit) {
  const ModelConfig config = parse_with("head_dim", 32);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.query_size(), 256);
  EXPECT_THAT(error_with("head_dim", 7), HasSubstr("an even number"));
  EXPECT_THAT(error_with("num_attention_heads", 7),
              HasSubstr("expected a multiple of num_attention_heads 7"));
}

// rival: rope_scaling ignored.
TEST(ModelConfig, RopeOfBothGenerations) {
  EXPECT_EQ(parse_with("rope_theta", 500000).rope_theta, 500000.0);
  EXPECT_EQ(parse_with("rope_parameters", {{"rope_theta", 100000}, {"rope_type", "default"}}).rope_theta,
            100000.0);
  const Llama3RopeScaling expected{32.0, 1.0, 4.0, 8192};
  EXPECT_EQ(parse_with("rope_scaling", llama3_rope()).rope_scaling, expected);
  Json v5 = llama3_rope();
  v5["rope_theta"] = 500000.0;
  const ModelConfig config = parse_with("rope_parameters", v5);
  EXPECT_EQ(config.rope_scaling, expected);
  EXPECT_EQ(config.rope_theta, 500000.0);
  // The older spelling of the type.
  Json older = llama3_rope();
  older["type"] = older["rope_type"];
  older.erase("rope_type");
  EXPECT_EQ(parse_with("rope_scaling", older).rope_scaling, expected);
  EXPECT_FALSE(parse_with("rope_scaling", {{"rope_type", "default"}}).rope_scaling);
}

TEST(ModelConfig, UnknownRopeIsRefusedByName) {
  EXPECT_THAT(error_with("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}),
              HasSubstr("rope_scaling: key type: found the string \"linear\""));
  EXPECT_THAT(error_with("rope_parameters", {{"rope_type", "yarn"}}), HasSubstr("found the string \"yarn\""));
  EXPECT_THAT(error_with("rope_scaling", {{"factor", 2.0}}), HasSubstr("key rope_type: found nothing"));
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    Json rope = llama3_rope();
    rope.erase(key);
    EXPECT_THAT(error_with("rope_scaling", rope), HasSubstr(std::string("key ") + key + ": found nothing"));
    rope[key] = 0;
    EXPECT_THAT(error_with("rope_scaling", rope), HasSubstr(std::string("key ") + key));
  }
  Json rope = llama3_rope();
  rope["high_freq_factor"] = 1.0;
  EXPECT_THAT(error_with("rope_scaling", rope), HasSubstr("expected more than low_freq_factor"));
}

// transformers v4 reads the one, v5 the other.
TEST(ModelConfig, TwoSpellingsThatDifferAreRefused) {
  Json json = minimal();
  json["rope_theta"] = 10000.0;
  json["rope_parameters"] = {{"rope_theta", 500000.0}, {"rope_type", "default"}};
  EXPECT_THAT(error_of(json), HasSubstr("key rope_theta: found 10000, expected 500000"));
  json["rope_theta"] = 500000.0;
  EXPECT_EQ(error_of(json), "accepted");
  json["rope_scaling"] = llama3_rope();
  EXPECT_THAT(error_of(json), HasSubstr("expected the same settings as in rope_parameters"));
}

TEST(ModelConfig, DTypeOfBothGenerations) {
  EXPECT_EQ(parse_with("torch_dtype", "bfloat16").dtype, DType::kBF16);
  EXPECT_EQ(parse_with("dtype", "float16").dtype, DType::kF16);
  EXPECT_EQ(parse_with("torch_dtype", "torch.float64").dtype, DType::kF64);
  EXPECT_THAT(error_with("torch_dtype", "int8"), HasSubstr("key torch_dtype: found the string \"int8\""));
}

TEST(ModelConfig, UnsupportedSettingsAreRefusedByName) {
  EXPECT_THAT(error_with("attention_bias", true),
              HasSubstr("key attention_bias: found true, expected false"));
  EXPECT_THAT(error_with("mlp_bias", true), HasSubstr("key mlp_bias: found true"));
  EXPECT_THAT(error_with("hidden_act", "gelu"), HasSubstr("key hidden_act: found the string \"gelu\""));
  EXPECT_THAT(error_with("quantization_config", {{"quant_method", "gptq"}}),
              HasSubstr("key quantization_config: found an object"));
  EXPECT_EQ(error_with("quantization_config", nullptr), "accepted");
  EXPECT_THAT(error_with("model_type", "mistral"), HasSubstr("key model_type: found the string \"mistral\""));
  EXPECT_THAT(error_with("rope_interleaved", true), HasSubstr("key rope_interleaved"));
  EXPECT_THAT(error_with("attention_dropout", 0.1), HasSubstr("key attention_dropout"));
  EXPECT_THAT(error_with("partial_rotary_factor", 0.5), HasSubstr("key partial_rotary_factor"));
  EXPECT_THAT(error_with("num_key_value_heads", 3),
              HasSubstr("key num_key_value_heads: found the number 3, expected a divisor"));
}

TEST(ModelConfig, MissingKeysAreNamed) {
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    Json json = minimal();
    json.erase(key);
    EXPECT_THAT(error_of(json),
                StartsWith(std::string("config.json: key ") + key + ": found nothing, expected"));
  }
  EXPECT_THAT(error_of(Json::array()), HasSubstr("config.json: found an empty array, expected an object"));
}

TEST(ModelConfig, MistypedAndImpossibleValuesAreNamed) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings"}) {
    for (const Json& value : {Json(0), Json(-1), Json(1.5), Json("64"), Json(true), Json::array({64}),
                              Json(1ULL << 63), Json(1LL << 40), Json(64.0)}) {
      EXPECT_THAT(error_with(key, value), StartsWith(std::string("config.json: key ") + key + ": found "))
          << value.dump();
    }
  }
  for (const char* key : {"rms_norm_eps", "rope_theta", "initializer_range"}) {
    for (const Json& value : {Json(0), Json(-1e-5), Json("1e-5"), Json(false)}) {
      EXPECT_THAT(error_with(key, value), StartsWith(std::string("config.json: key ") + key + ": found "));
    }
  }
  for (const char* key : {"tie_word_embeddings", "attention_bias", "mlp_bias"}) {
    EXPECT_THAT(error_with(key, 1), HasSubstr("expected true or false"));
  }
  EXPECT_THAT(error_with("rope_scaling", "llama3"), HasSubstr("key rope_scaling: found the string"));
}

TEST(ModelConfig, SharingComesFromTheFile) {
  Json json = minimal();
  json["model_type"] = "sa_llama";
  EXPECT_THAT(error_of(json), HasSubstr("key sharing: found nothing"));
  json["sharing"] = {{"layers", "2-3"}, {"anchor", "before"}};
  EXPECT_EQ(parse(json).sharing, SharingPlan::parse("2-3", AnchorRule::kBefore, 4));
  json["attention_sources"] = {0, 1, 1, 1};
  EXPECT_EQ(parse(json).sharing.source(3), 1);
  json["attention_sources"] = {0, 1, 2, 2};
  EXPECT_THAT(error_of(json),
              AllOf(HasSubstr("key attention_sources: found [0,1,2,2]"), HasSubstr("[0,1,1,1]")));
  json.erase("attention_sources");
  json["sharing"] = {{"layers", "2-4"}};
  EXPECT_THAT(error_of(json), AllOf(StartsWith("config.json: key sharing: "), HasSubstr("found layer 4")));
  json["sharing"] = {{"layers", "2-3"}, {"anchor", "after"}};
  EXPECT_THAT(error_of(json), HasSubstr("\"after\""));
  json["sharing"] = {{"layer", "2-3"}};
  EXPECT_THAT(error_of(json), HasSubstr("the unknown key \"layer\", expected \"layers\""));
  json["sharing"] = {{"layers", 2}};
  EXPECT_THAT(error_of(json), HasSubstr("sharing: key layers: found the number 2"));
  // From scratch: an architecture with a plan of its own.
  json = minimal();
  json["sharing"] = {{"layers", "2-3"}, {"anchor", "first"}};
  EXPECT_EQ(parse(json).sharing.source(3), 2);
}

// What is written is read back to the same model, numbers to the last bit.
TEST(ModelConfigJson, RoundTrip) {
  ModelConfig config = parse(minimal());
  config.rms_norm_eps = 1e-05;
  config.rope_theta = 500000.0;
  config.initializer_range = 0.041666666666666664;
  config.rope_scaling = Llama3RopeScaling{8.0, 1.0, 4.0, 8192};
  config.tie_word_embeddings = true;
  config.bos_token_id = 1;
  config.eos_token_ids = {2, 7};
  config.dtype = DType::kBF16;
  const std::string text = write_json(model_config_json(config));
  EXPECT_THAT(text, HasSubstr("\"rms_norm_eps\": 1e-05,"));
  const ModelConfig back = parse_model_config(parse_json(text, "config.json"), "config.json");
  EXPECT_EQ(back.rms_norm_eps, config.rms_norm_eps);
  EXPECT_EQ(back.rope_theta, config.rope_theta);
  EXPECT_EQ(back.initializer_range, config.initializer_range);
  EXPECT_EQ(back.rope_scaling, config.rope_scaling);
  EXPECT_TRUE(back.tie_word_embeddings);
  EXPECT_EQ(back.bos_token_id, 1);
  EXPECT_FALSE(back.pad_token_id);
  EXPECT_THAT(back.eos_token_ids, ElementsAre(2, 7));
  EXPECT_EQ(back.dtype, DType::kBF16);
  EXPECT_EQ(write_json(model_config_json(back)), text);
}

TEST(ModelConfigJson, PlainLlamaHasTheKeysOfBothGenerations) {
  const Json json = model_config_json(parse_with("eos_token_id", 2));
  EXPECT_EQ(json["architectures"].dump(), R"(["LlamaForCausalLM"])");
  EXPECT_EQ(json["model_type"], "llama");
  EXPECT_FALSE(json.contains("auto_map"));
  EXPECT_FALSE(json.contains("sharing"));
  EXPECT_EQ(json["rope_theta"], 10000.0);
  EXPECT_TRUE(json["rope_scaling"].is_null());
  EXPECT_EQ(json["rope_parameters"].dump(), R"({"rope_type":"default","rope_theta":10000.0})");
  EXPECT_EQ(json["torch_dtype"], "float32");
  EXPECT_EQ(json["dtype"], "float32");
  EXPECT_EQ(json["eos_token_id"], 2);
}

TEST(ModelConfigJson, SharingIsAModelTypeOfItsOwn) {
  ModelConfig config = parse(minimal());
  config.sharing = SharingPlan::parse("2-3", AnchorRule::kBefore, 4);
  const Json json = model_config_json(config);
  EXPECT_EQ(json["model_type"], "sa_llama");
  EXPECT_EQ(json["architectures"].dump(), R"(["SALlamaForCausalLM"])");
  EXPECT_EQ(json["auto_map"].dump(), R"({"AutoConfig":"configuration_sa_llama.SALlamaConfig",)"
                                     R"("AutoModel":"modeling_sa_llama.SALlamaModel",)"
                                     R"("AutoModelForCausalLM":"modeling_sa_llama.SALlamaForCausalLM"})");
  EXPECT_EQ(json["sharing"].dump(), R"({"layers":"2-3","anchor":"before"})");
  EXPECT_EQ(json["attention_sources"].dump(), "[0,1,1,1]");
  EXPECT_EQ(parse(json).sharing, config.sharing);
  EXPECT_EQ(parse(json).sharing.layers_text(), "2-3");
}

TEST(ModelConfig, Llama31) {
  SATUNE_REALDATA_OR_SKIP(directory, "cfg_llama31_8b");
  const ModelConfig config = read_model_config(directory);
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.num_key_value_heads, 8);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_scaling, (Llama3RopeScaling{8.0, 1.0, 4.0, 8192}));
  EXPECT_EQ(config.rms_norm_eps, 1e-05);
  EXPECT_EQ(config.dtype, DType::kBF16);
  EXPECT_FALSE(config.tie_word_embeddings);
}

TEST(ModelConfig, Llama32IsTied) {
  SATUNE_REALDATA_OR_SKIP(directory, "cfg_llama32_1b");
  const ModelConfig config = read_model_config(directory);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.rope_scaling->factor, 32.0);
}

TEST(ModelConfig, SmolLm2IsWrittenByTransformers5) {
  SATUNE_REALDATA_OR_SKIP(directory, "cfg_smollm2_135m");
  const ModelConfig config = read_model_config(directory);
  EXPECT_EQ(config.rope_theta, 100000.0);
  EXPECT_FALSE(config.rope_scaling);
  EXPECT_EQ(config.dtype, DType::kBF16);
  EXPECT_EQ(config.initializer_range, 0.041666666666666664);
  EXPECT_EQ(config.num_attention_heads, 9);
  EXPECT_FALSE(config.pad_token_id);
}

TEST(ModelConfig, Llama2HasNoRopeTheta) {
  SATUNE_REALDATA_OR_SKIP(directory, "tok_llama2");
  const ModelConfig config = read_model_config(directory);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.num_key_value_heads, 32);
  EXPECT_EQ(config.dtype, DType::kF16);
}

TEST(ModelConfig, AllRealConfigsSurviveARoundTrip) {
  for (const char* name : {"cfg_llama31_8b", "cfg_llama32_1b", "cfg_llama3_8b", "cfg_llama3_8b_instruct",
                           "cfg_smollm2_135m", "stories260K_hf", "tok_llama2", "weights_tiny_random_llama"}) {
    SATUNE_REALDATA_OR_SKIP(directory, name);
    const ModelConfig config = read_model_config(directory);
    const Json json = model_config_json(config);
    EXPECT_EQ(model_config_json(parse_model_config(parse_json(write_json(json), name), name)), json);
    const Json original = read_json_file(directory / "config.json");
    for (const auto& [key, value] : original.items()) {
      // What both have means the same.
      if (!json.contains(key) || key == "rope_parameters" || key == "auto_map") continue;
      // As nlohmann::json, to which the order of keys means nothing.
      EXPECT_EQ(nlohmann::json(json[key]), nlohmann::json(value)) << name << " " << key;
    }
  }
}

}  // namespace
}  // namespace satune
