#include "model/files/sharing_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/files/error.h"

namespace satune {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int> sources(const SharingPlan& plan) {
  std::vector<int> result;
  for (int i = 0; i < plan.num_layers(); ++i) result.push_back(plan.source(i));
  return result;
}

SharingPlan before(std::string_view layers, int num_layers) {
  return SharingPlan::parse(layers, AnchorRule::kBefore, num_layers);
}

SharingPlan first(std::string_view layers, int num_layers) {
  return SharingPlan::parse(layers, AnchorRule::kFirst, num_layers);
}

std::string error_of(std::string_view layers, AnchorRule rule, int num_layers) {
  try {
    SharingPlan::parse(layers, rule, num_layers);
  } catch (const BadInput& error) {
    return error.what();
  }
  return "accepted";
}

TEST(SharingPlan, WithoutSharingEveryLayerIsItsOwnSource) {
  const SharingPlan plan(3);
  EXPECT_THAT(sources(plan), ElementsAre(0, 1, 2));
  EXPECT_TRUE(plan.empty());
  EXPECT_EQ(plan.num_shared(), 0);
  EXPECT_EQ(plan.layers_text(), "");
  EXPECT_FALSE(plan.is_anchor(0));
  EXPECT_TRUE(SharingPlan().empty());
}

TEST(SharingPlan, BeforeIsTheReferenceCodesReading) {
  const SharingPlan plan = before("23-26", 32);
  for (int layer = 23; layer <= 26; ++layer) EXPECT_EQ(plan.source(layer), 22);
  EXPECT_EQ(plan.source(22), 22);
  EXPECT_EQ(plan.source(27), 27);
  EXPECT_EQ(plan.num_shared(), 4);
  EXPECT_TRUE(plan.is_anchor(22));
  EXPECT_FALSE(plan.is_anchor(23));
  EXPECT_THAT(plan.users(22), ElementsAre(23, 24, 25, 26));
  EXPECT_EQ(plan.layers_text(), "23-26");
  EXPECT_EQ(plan.rule(), AnchorRule::kBefore);
  EXPECT_EQ(before("27-30", 32).source(30), 26);
}

TEST(SharingPlan, FirstIsThePapersAlgorithm) {
  const SharingPlan plan = first("2-4", 6);
  EXPECT_THAT(sources(plan), ElementsAre(0, 1, 2, 2, 2, 5));
  EXPECT_THAT(sources(first("0-1", 3)), ElementsAre(0, 0, 2));
}

TEST(SharingPlan, SeveralRunsInAnyOrder) {
  const SharingPlan plan = before(" 7 , 2-3 ", 9);
  EXPECT_THAT(sources(plan), ElementsAre(0, 1, 1, 1, 4, 5, 6, 6, 8));
  EXPECT_EQ(plan.layers_text(), "2-3,7");
  EXPECT_EQ(plan, before("2-3,7", 9));
}

TEST(SharingPlan, TouchingRangesAreTwoRuns) {
  EXPECT_THAT(sources(before("2-3,4-5", 6)), ElementsAre(0, 1, 1, 1, 1, 1));
  EXPECT_THAT(sources(first("2-3,4-5", 6)), ElementsAre(0, 1, 2, 2, 4, 4));
}

TEST(SharingPlan, EqualityAsksForSourcesOnly) {
  EXPECT_EQ(before("3-4", 6), first("2-4", 6));
  EXPECT_FALSE(before("3-4", 6) == before("3-5", 6));
}

TEST(SharingPlan, ErrorsNameTheLayer) {
  const auto kBefore = AnchorRule::kBefore, kFirst = AnchorRule::kFirst;
  EXPECT_EQ(error_of("30-32", kBefore, 32),
            "sharing layers \"30-32\": found layer 32, expected layers 0 to 31");
  EXPECT_THAT(error_of("99999999999999", kBefore, 32), HasSubstr("found layer 99999999999999"));
  EXPECT_THAT(error_of("2-5,5-7", kBefore, 32), HasSubstr("found layer 5 twice"));
  EXPECT_THAT(error_of("2-5,3", kFirst, 32), HasSubstr("found layer 3 twice"));
  EXPECT_THAT(error_of("0-2", kBefore, 32), HasSubstr("found layer 0 with anchor \"before\""));
  EXPECT_THAT(error_of("7", kFirst, 32), HasSubstr("found layer 7 alone"));
  EXPECT_THAT(error_of("5-2", kBefore, 32), HasSubstr("found the range 5-2"));
  EXPECT_THAT(error_of("", kBefore, 32), HasSubstr("found no layer"));
  EXPECT_THAT(error_of("  ", kBefore, 32), HasSubstr("found no layer"));
  for (const char* text : {"a", "1-", "-1", "1--2", "1,,2", "1,", "1.5", "+3", "0x2", "1-2-3"}) {
    EXPECT_THAT(error_of(text, kBefore, 32), HasSubstr("expected a layer or a range")) << text;
  }
}

TEST(AnchorRule, Names) {
  EXPECT_EQ(parse_anchor_rule(to_string(AnchorRule::kBefore)), AnchorRule::kBefore);
  EXPECT_EQ(parse_anchor_rule(to_string(AnchorRule::kFirst)), AnchorRule::kFirst);
  EXPECT_THROW(parse_anchor_rule("First"), BadInput);
}

}  // namespace
}  // namespace satune
