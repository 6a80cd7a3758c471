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
  EXPECT_FALSE(settle_sharing(config, "", std::nullopt, "MODEL"));
  EXPECT_TRUE(config.sharing.empty());
  config.sharing = SharingPlan::parse("3-4", AnchorRule::kBefore, 8);
  EXPECT_FALSE(settle_sharing(config, "", std::nullopt, "MODEL"));
  EXPECT_EQ(config.sharing.num_shared(), 2);
}

TEST(SettleSharing, ADenseCheckpointTakesTheNewPlan) {
  ModelConfig config = layers(8);
  EXPECT_TRUE(settle_sharing(config, "3-5", "first", "MODEL"));
  EXPECT_EQ(config.sharing.source(5), 3);
  EXPECT_FALSE(config.sharing.is_shared(3));
}

TEST(SettleSharing, AnExportedPlanMayBeRepeatedInAnyWordsButNotChanged) {
  ModelConfig config = layers(8);
  config.sharing = SharingPlan::parse("3-5", AnchorRule::kFirst, 8);
  EXPECT_FALSE(settle_sharing(config, "4-5", "before", "MODEL"));
  try {
    settle_sharing(config, "3-5", std::nullopt, "MODEL");
    FAIL();
  } catch (const BadInput& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("found \"3-5\" with anchor \"before\""), std::string::npos) << message;
    EXPECT_NE(message.find("\"3-5\" with anchor \"first\", the plan of MODEL"), std::string::npos) << message;
  }
}

TEST(SettleSharing, AnAnchorAloneIsAnError) {
  ModelConfig config = layers(8);
  EXPECT_THROW(settle_sharing(config, "", "first", "MODEL"), BadInput);
  EXPECT_THROW(settle_sharing(config, "3-4", "last", "MODEL"), BadInput);
}

}  // namespace
}  // namespace satune
