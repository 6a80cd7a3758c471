#include "model/flops.h"

#include <gtest/gtest.h>

#include "tests/model/models.h"

namespace satune {
namespace {

double flops(const ModelConfig& config, double length, const std::vector<bool>& trained = {}) {
  return training_flops_per_token(config, TensorTable(config), trained, length);
}

TEST(TrainingFlops, Llama3AsPublished) {
  const ModelConfig config = model_configs::llama3("8b");
  EXPECT_NEAR(flops(config, 1024) / 1e9, 45.8, 0.05);
  EXPECT_NEAR(flops(config, 2048) / 1e9, 46.6, 0.05);
  EXPECT_NEAR(flops(config, 8192) / 1e9, 51.5, 0.05);
}

TEST(TrainingFlops, ASharedLayerLosesItsProjectionsAndItsScores) {
  const ModelConfig dense = model_configs::llama3("8b");
  ModelConfig shared = dense;
  shared.sharing = SharingPlan::parse("23-26", AnchorRule::kBefore, 32);
  const double projections = 6.0 * 4 * (4096.0 * 4096 + 4096.0 * 1024);
  const double scores = 3.0 * 4 * 2048 * 4096;
  EXPECT_DOUBLE_EQ(flops(dense, 2048) - flops(shared, 2048), projections + scores);
}

TEST(TrainingFlops, TiedAndUntiedHeadsCostTheSame) {
  const ModelConfig untied = testing::small_config(3, false), tied = testing::small_config(3, true);
  EXPECT_DOUBLE_EQ(flops(untied, 10), flops(tied, 10));
}

TEST(TrainingFlops, FrozenTensorsHaveNoWeightGradientAndEndTheBackward) {
  const ModelConfig config = testing::small_config(3);
  const TensorTable table(config);
  const double head = 67.0 * 48;
  const double layer = 48.0 * (96 + 2 * 32 + 96) + 3 * 48.0 * 80, scores_and_values = 2 * 10 * 96.0;
  // Trained: layer 2's down projection alone.
  std::vector<bool> trained(table.tensors().size(), false);
  trained[table.find("model.layers.2.mlp.down_proj.weight") - table.tensors().data()] = true;
  const double forward = 2 * (3 * layer + head) + 3 * scores_and_values;
  const double backward = 2 * (layer + head) + 2 * scores_and_values + 2 * 48.0 * 80;
  EXPECT_DOUBLE_EQ(flops(config, 10, trained), forward + backward);
  trained.assign(trained.size(), true);
  EXPECT_DOUBLE_EQ(flops(config, 10, trained), 3 * forward);
}

}  // namespace
}  // namespace satune
