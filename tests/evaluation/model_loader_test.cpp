#include "evaluation/model_loader.h"

#include <gtest/gtest.h>

#include "data/files/error.h"

namespace satune {
namespace {

ModelConfig layers(int count) {
  ModelConfig config;
  config.num_hidden_layers = count;
  config.sharing = SharingPlan(count);
  return config;
}

TEST(SettleSharing, NothingSaidKeepsThePlanOfTheCheckpoint) {
  ModelConfig config = layers(8);
  EXPECT_FALSE(settle_sharing(config, "", std::nullopt));
  EXPECT_TRUE(config.sharing.empty());
  config.sharing = SharingPlan::parse("3-4", AnchorRule::kBefore, 8);
  EXPECT_FALSE(settle_sharing(config, "", std::nullopt));
  EXPECT_EQ(config.sharing.num_shared(), 2);
}

TEST(SettleSharing, ADenseCheckpointTakesTheNewPlan) {
  ModelConfig config = layers(8);
  EXPECT_TRUE(settle_sharing(config, "3-5", "first"));
  EXPECT_EQ(config.sharing.source(5), 3);
  EXPECT_FALSE(config.sharing.is_shared(3));
}

TEST(SettleSharing, AnExportedPlanMayBeRepeatedInAnyWordsButNotChanged) {
  ModelConfig config = layers(8);
  config.sharing = SharingPlan::parse("3-5", AnchorRule::kFirst, 8);
  EXPECT_FALSE(settle_sharing(config, "4-5", "before"));
  try {
    settle_sharing(config, "3-5", std::nullopt);
    FAIL();
  } catch (const BadInput& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("3-5 (anchor before)"), std::string::npos) << message;
    EXPECT_NE(message.find("3-5 (anchor first)"), std::string::npos) << message;
  }
}

TEST(SettleSharing, AnAnchorAloneIsAnError) {
  ModelConfig config = layers(8);
  EXPECT_THROW(settle_sharing(config, "", "first"), BadInput);
  EXPECT_THROW(settle_sharing(config, "3-4", "last"), BadInput);
}

}  // namespace
}  // namespace satune
