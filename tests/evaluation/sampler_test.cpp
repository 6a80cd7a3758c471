#include "evaluation/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "data/files/error.h"

namespace satune {
namespace {

const std::vector<float> kLogits = {0.0f, 2.0f, 1.0f, 2.0f, -1.0f};

std::map<int32_t, int> draw(const SamplingOptions& options, int count) {
  Sampler sampler(options);
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) ++seen[sampler.next(kLogits)];
  return seen;
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
  EXPECT_EQ(Sampler({}).next(kLogits), 1);
}

TEST(Sampler, FollowsTheSoftmaxOfTheTemperature) {
  const int count = 40000;
  const auto seen = draw({.temperature = 2.0}, count);
  double total = 0;
  for (const float logit : kLogits) total += std::exp(logit / 2.0);
  for (int32_t id = 0; id < 5; ++id) {
    const double p = std::exp(kLogits[id] / 2.0) / total;
    EXPECT_NEAR(seen.at(id) / double{count}, p, 4 * std::sqrt(p * (1 - p) / count)) << "id " << id;
  }
}

TEST(Sampler, TopKKeepsTheMostProbable) {
  const auto seen = draw({.temperature = 1.0, .top_k = 3}, 3000);
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_TRUE(seen.contains(1) && seen.contains(2) && seen.contains(3));
  EXPECT_EQ(draw({.temperature = 1.0, .top_k = 1}, 100), (std::map<int32_t, int>{{1, 100}}));
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesTheMass) {
  // Probabilities at temperature 1: ids 1 and 3 0.391 each, 2 0.144, 0 0.053, 4 0.019.
  EXPECT_EQ(draw({.temperature = 1.0, .top_p = 0.3}, 500).size(), 1u);
  EXPECT_EQ(draw({.temperature = 1.0, .top_p = 0.5}, 500).size(), 2u);
  EXPECT_EQ(draw({.temperature = 1.0, .top_p = 0.9}, 2000).size(), 3u);
}

/// Of a vocabulary that is ranked piece by piece: what the nucleus holds is what sorting all of it gives.
TEST(Sampler, TopPOfALargeVocabulary) {
  std::vector<float> logits(5000);
  for (size_t id = 0; id < logits.size(); ++id) logits[id] = std::sin(static_cast<float>(id)) * 1.5f;
  std::vector<std::pair<double, int32_t>> order;
  double total = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    order.emplace_back(-std::exp(double{logits[id]}), static_cast<int32_t>(id));
    total -= order.back().first;
  }
  std::sort(order.begin(), order.end());
  for (const double top_p : {0.05, 0.6}) {
    std::set<int32_t> nucleus;
    double mass = 0;
    for (const auto& [weight, id] : order) {
      if (mass >= top_p * total) break;
      nucleus.insert(id);
      mass -= weight;
    }
    Sampler sampler({.temperature = 1.0, .top_p = top_p});
    std::set<int32_t> seen;
    for (int i = 0; i < 400; ++i) seen.insert(sampler.next(logits));
    EXPECT_TRUE(std::includes(nucleus.begin(), nucleus.end(), seen.begin(), seen.end())) << top_p;
    EXPECT_GT(seen.size(), std::min<size_t>(nucleus.size(), 400) / 2);
  }
}

/// transformers.RepetitionPenaltyLogitsProcessor: once a token, whether it stood in the prompt or the answer.
TEST(Sampler, RepetitionsArePenalised) {
  const std::vector<float> logits = {-1.0f, 3.0f, 2.9f, 2.0f, -1.5f};
  const std::vector<int32_t> prompt = {1, 1, 0};
  Sampler sampler({.repetition_penalty = 1.5}, 0, prompt);
  EXPECT_EQ(sampler.next(logits), 2);  // 1 stood in the prompt: 3 / 1.5 = 2
  EXPECT_EQ(sampler.next(logits), 1);  // 2.9 / 1.5 < 2, and of equal ones the lowest id
  EXPECT_EQ(sampler.next(logits), 1);  // is not divided again
  const std::vector<float> negative = {-1.0f, -1.2f};
  EXPECT_EQ(Sampler({.repetition_penalty = 1.5}, 0, std::vector<int32_t>{0}).next(negative), 1);
  EXPECT_EQ(Sampler({}, 0, std::vector<int32_t>{0}).next(negative), 0);
}

TEST(Sampler, EachPromptDrawsOnItsOwn) {
  const auto sequence = [](uint64_t index) {
    Sampler sampler({.temperature = 1.0, .seed = 3}, index);
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.next(kLogits));
    return ids;
  };
  EXPECT_EQ(sequence(0), sequence(0));
  EXPECT_NE(sequence(0), sequence(1));
}

TEST(Sampler, SameSeedSameTokensOtherSeedOthers) {
  const auto sequence = [](uint64_t seed) {
    Sampler sampler({.temperature = 1.0, .seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.next(kLogits));
    return ids;
  };
  EXPECT_EQ(sequence(3), sequence(3));
  EXPECT_NE(sequence(3), sequence(4));
}

TEST(Sampler, MaskedLogitsAreNeverDrawn) {
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {minus_infinity, 0.0f, minus_infinity};
  Sampler sampler({.temperature = 5.0});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.next(logits), 1);
}

TEST(Sampler, DamagedLogitsAreAnError) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& logits :
       {std::vector<float>{0.0f, nan}, {0.0f, infinity}, {-infinity, -infinity}}) {
    EXPECT_THROW(Sampler({}).next(logits), std::runtime_error);
    EXPECT_THROW(Sampler({.temperature = 1.0}).next(logits), std::runtime_error);
  }
}

/// In range, the penalty still carries what is near the end of floats beyond it, and nothing is left to draw.
TEST(Sampler, LogitsThatThePenaltyDrivesOutOfRangeAreAnError) {
  const std::vector<int32_t> prompt = {0, 1};
  for (const double temperature : {0.0, 1.0}) {
    Sampler divides({.temperature = temperature, .repetition_penalty = 1e-3}, 0, prompt);
    EXPECT_THROW(divides.next(std::vector<float>{1e37f, 0.0f}), std::runtime_error);
    Sampler multiplies({.temperature = temperature, .repetition_penalty = 1e3}, 0, prompt);
    EXPECT_THROW(multiplies.next(std::vector<float>{-1e37f, -1e37f}), std::runtime_error);
    EXPECT_EQ(multiplies.next(std::vector<float>{-1e37f, -2.0f}), 1) << "one of two is masked";
  }
}

TEST(Sampler, ItselfRefusesOptionsOutOfRange) {
  for (const double penalty : {0.0, 1e-40, -1.0, 2000.0, static_cast<double>(NAN)})
    EXPECT_THROW(Sampler({.repetition_penalty = penalty}), BadInput) << penalty;
  for (const double penalty : {1e-3, 1e3})
    EXPECT_NO_THROW(Sampler({.repetition_penalty = penalty})) << penalty;
}

TEST(Sampler, OptionsOutOfRangeAreNamed) {
  const auto message = [](const SamplingOptions& options) -> std::string {
    try {
      check_sampling_options(options);
    } catch (const BadInput& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({.temperature = -1}).find("--temperature"), std::string::npos);
  EXPECT_NE(message({.temperature = NAN}).find("--temperature"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("--top-k"), std::string::npos);
  EXPECT_NE(message({.top_p = 0}).find("--top-p"), std::string::npos);
  EXPECT_NE(message({.top_p = 1.5}).find("--top-p"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = 0}).find("--repetition-penalty"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = 1e-40}).find("--repetition-penalty"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = INFINITY}).find("--repetition-penalty"), std::string::npos);
  EXPECT_EQ(message({}), "");
}

}  // namespace
}  // namespace satune
