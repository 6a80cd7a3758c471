#include "model/files/tensor_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model_configs.h"

namespace satune {
namespace {

using ::testing::ElementsAre;

ModelConfig small_config() {
  // head_dim is on purpose not hidden / heads.
  return model_configs::config_of(
      {.vocabulary = 100, .hidden = 32, .ffn = 48, .layers = 3, .heads = 4, .kv_heads = 2, .head_dim = 16});
}

std::vector<std::string> names(std::span<const TensorInfo> tensors) {
  std::vector<std::string> result;
  for (const TensorInfo& tensor : tensors) result.push_back(tensor.name);
  return result;
}

TEST(TensorTable, ALayersTensorsInStorageOrder) {
  const TensorTable table(small_config());
  EXPECT_EQ(table.num_segments(), 5);
  EXPECT_THAT(names(table.segment(0)), ElementsAre("model.embed_tokens.weight"));
  const std::string p = "model.layers.1.";
  EXPECT_THAT(names(table.segment(2)),
              ElementsAre(p + "self_attn.q_proj.weight", p + "self_attn.k_proj.weight",
                          p + "self_attn.v_proj.weight", p + "self_attn.o_proj.weight",
                          p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight", p + "mlp.down_proj.weight",
                          p + "input_layernorm.weight", p + "post_attention_layernorm.weight"));
  EXPECT_THAT(names(table.segment(4)), ElementsAre("lm_head.weight", "model.norm.weight"));
  EXPECT_EQ(table.tensors().size(), 1u + 3 * 9 + 2);
}

TEST(TensorTable, ShapesFollowHeadsAndHeadDim) {
  const TensorTable table(small_config());
  const auto shape = [&](std::string_view name) { return table.find(name)->shape; };
  EXPECT_THAT(shape("model.embed_tokens.weight"), ElementsAre(100, 32));
  EXPECT_THAT(shape("model.layers.0.self_attn.q_proj.weight"), ElementsAre(64, 32));
  EXPECT_THAT(shape("model.layers.0.self_attn.k_proj.weight"), ElementsAre(32, 32));
  EXPECT_THAT(shape("model.layers.0.self_attn.v_proj.weight"), ElementsAre(32, 32));
  EXPECT_THAT(shape("model.layers.0.self_attn.o_proj.weight"), ElementsAre(32, 64));
  EXPECT_THAT(shape("model.layers.0.mlp.gate_proj.weight"), ElementsAre(48, 32));
  EXPECT_THAT(shape("model.layers.0.mlp.down_proj.weight"), ElementsAre(32, 48));
  EXPECT_THAT(shape("model.norm.weight"), ElementsAre(32));
  EXPECT_EQ(table.find("model.layers.3.self_attn.q_proj.weight"), nullptr);
}

TEST(TensorTable, OnlyNormsAreFreeOfDecay) {
  const TensorTable table(small_config());
  for (const TensorInfo& tensor : table.tensors()) {
    EXPECT_EQ(tensor.decay, tensor.name.find("norm") == std::string::npos) << tensor.name;
  }
}

TEST(TensorTable, ASharedLayerHasNoQueryAndNoKey) {
  ModelConfig config = small_config();
  config.sharing = SharingPlan::parse("1-2", AnchorRule::kBefore, 3);
  const TensorTable table(config);
  EXPECT_NE(table.find("model.layers.0.self_attn.q_proj.weight"), nullptr);
  for (const char* layer : {"1", "2"}) {
    const std::string prefix = std::string("model.layers.") + layer + ".self_attn.";
    EXPECT_EQ(table.find(prefix + "q_proj.weight"), nullptr);
    EXPECT_EQ(table.find(prefix + "k_proj.weight"), nullptr);
    EXPECT_NE(table.find(prefix + "v_proj.weight"), nullptr);
    EXPECT_NE(table.find(prefix + "o_proj.weight"), nullptr);
  }
  const int64_t dense = TensorTable(small_config()).parameter_count();
  EXPECT_EQ(table.parameter_count(), dense - 2 * (64 * 32 + 32 * 32));
}

TEST(TensorTable, ATiedHeadIsNotListed) {
  ModelConfig config = small_config();
  config.tie_word_embeddings = true;
  const TensorTable table(config);
  EXPECT_EQ(table.find("lm_head.weight"), nullptr);
  EXPECT_THAT(names(table.segment(4)), ElementsAre("model.norm.weight"));
}

TEST(TensorTable, CountsLlama3) {
  EXPECT_EQ(TensorTable(model_configs::llama3("8b")).parameter_count(), 8030261248);
}

TEST(TensorTable, ACopyFindsItsOwnTensors) {
  TensorTable copy;
  {
    const TensorTable original(small_config());
    copy = original;
  }
  EXPECT_EQ(copy.find("model.norm.weight"), &copy.tensors().back());
}

}  // namespace
}  // namespace satune
