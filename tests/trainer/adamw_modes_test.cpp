// AdamW in its memory modes: what has to be the same run is, what is rounded is rounded right.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "data/random.h"
#include "tests/model_configs.h"
#include "trainer/adamw.h"

namespace satune::trainer_test {
namespace {

void fill_random(const at::Tensor& tensor, double scale, uint64_t seed) {
  RandomStream random(seed, "modes");
  at::Tensor values = at::empty(tensor.sizes(), at::kFloat);
  float* data = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    data[i] = static_cast<float>(scale * (static_cast<double>(random.below(20001)) / 10000.0 - 1.0));
  }
  tensor.copy_(values);
}

/// bf16 weights of a small model under an optimizer. Sizes that are no multiples of anything.
struct Trained {
  explicit Trained(const StateFormat& format, const World& owner = {}, uint64_t seed = 42)
      : table(model_configs::config_of({.vocabulary = 1500,
                                        .hidden = 40,
                                        .ffn = 72,
                                        .layers = 2,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 10})),
        weights(table, all(), at::kBFloat16, at::kCPU),
        gradients(table, all(), at::kFloat, at::kCPU) {
    for (size_t i = 0; i < table.tensors().size(); ++i) fill_random(weights.tensor(i), 0.5, i);
    AdamWOptions options;
    options.weight_decay = 0.1;
    options.format = format;
    options.seed = seed;
    optimizer.emplace(weights, options, owner);
  }
  std::vector<bool> all() const { return std::vector<bool>(table.tensors().size(), true); }
  void update(int64_t t, double learning_rate = 1e-3) {
    for (size_t i = 0; i < table.tensors().size(); ++i) {
      fill_random(gradients.tensor(i), 0.01, 1000 * static_cast<uint64_t>(t) + i);
    }
    optimizer->update(gradients, 0.7, learning_rate, t);
  }

  TensorTable table;
  ParameterBuffers weights, gradients;
  std::optional<AdamW> optimizer;
};

StateFormat format_of(MasterWeights master, OptimizerMoments moments) {
  StateFormat format;
  format.master_weights = master;
  format.moments = moments;
  return format;
}

constexpr OptimizerMoments kMoments[] = {OptimizerMoments::kFp32, OptimizerMoments::kBf16,
                                         OptimizerMoments::k8Bit};

TEST(MemoryModes, SplitMastersAreTheFp32RunBitwise) {
  for (const OptimizerMoments moments : kMoments) {
    Trained whole(format_of(MasterWeights::kFp32, moments)), split(format_of(MasterWeights::kSplit, moments));
    int64_t ties = 0;
    for (int64_t t = 1; t <= 12; ++t) {
      whole.update(t);
      split.update(t);
      for (int i = 0; i < whole.weights.num_segments(); ++i) {
        ASSERT_TRUE(at::equal(whole.weights.flat(i), split.weights.flat(i))) << "update " << t;
        for (const std::string_view part : kOptimizerParts) {
          ASSERT_TRUE(at::equal(whole.optimizer->part(part, i), split.optimizer->part(part, i)))
              << part << ", update " << t;
        }
        const at::Tensor lower = whole.optimizer->part("master", i).view(at::kInt).bitwise_and(0x1ffff);
        ties += lower.eq(0x8000).sum().item<int64_t>();
      }
    }
    EXPECT_GT(ties, 0) << "a remainder of 16 bits alone would have done";
  }
}

TEST(MemoryModes, NeitherShardsNorThreadsChangeABit) {
  for (const MasterWeights master : {MasterWeights::kSplit, MasterWeights::kNone}) {
    for (const OptimizerMoments moments : kMoments) {
      const StateFormat format = format_of(master, moments);
      Trained whole(format);
      at::set_num_threads(1);
      for (int64_t t = 1; t <= 3; ++t) whole.update(t);
      at::set_num_threads(3);
      for (const int64_t size : {1, 2, 4}) {
        for (int64_t rank = 0; rank < size; ++rank) {
          Trained part(format, {rank, size});
          for (int64_t t = 1; t <= 3; ++t) part.update(t);
          for (int i = 0; i < whole.weights.num_segments(); ++i) {
            const ElementRange range = shard_range(whole.weights.flat(i).numel(), {rank, size});
            EXPECT_TRUE(at::equal(whole.weights.flat(i).slice(0, range.begin, range.end),
                                  part.weights.flat(i).slice(0, range.begin, range.end)));
            for (const std::string_view name : kOptimizerParts) {
              EXPECT_TRUE(at::equal(whole.optimizer->part(name, i).slice(0, range.begin, range.end),
                                    part.optimizer->part(name, i)))
                  << name << " of rank " << rank << " of " << size;
            }
          }
        }
      }
      at::set_num_threads(1);
    }
  }
}

/// Elements of the weights after one update that differ.
double share_that_differs(const Trained& a, const Trained& b) {
  double differ = 0, all = 0;
  for (int i = 0; i < a.weights.num_segments(); ++i) {
    differ += a.weights.flat(i).ne(b.weights.flat(i)).sum().item<double>();
    all += static_cast<double>(a.weights.used(i));
  }
  return differ / all;
}

TEST(StochasticWeights, FollowTheFp32MasterOnTheMean) {
  // One small update: most weights stay, some move by a whole bf16 step, and the mean is that of fp32.
  Trained exact(format_of(MasterWeights::kFp32, OptimizerMoments::kFp32));
  Trained rounded(format_of(MasterWeights::kNone, OptimizerMoments::kFp32)), before{StateFormat()};
  exact.update(1, 1e-4);
  rounded.update(1, 1e-4);
  double moved = 0, wanted = 0, variance = 0;
  for (int i = 0; i < exact.weights.num_segments(); ++i) {
    const at::Tensor start = before.weights.flat(i).to(at::kDouble);
    const at::Tensor step = exact.optimizer->part("master", i).to(at::kDouble) - start;
    const at::Tensor found = rounded.weights.flat(i).to(at::kDouble) - start;
    // In the direction that each was to go, so that mistakes of one sign do not cancel.
    moved += (found * step.sign()).sum().item<double>();
    wanted += step.abs().sum().item<double>();
    variance += (found - step).square().sum().item<double>();
  }
  EXPECT_NEAR(moved, wanted, 5 * std::sqrt(variance));
  EXPECT_GT(wanted, 20 * std::sqrt(variance)) << "the test would see nothing";
}

// rival: constant seed for stochastic rounding noise.
TEST(StochasticWeights, RoundDifferentlyInEveryUpdateAndSeed) {
  const StateFormat format = format_of(MasterWeights::kNone, OptimizerMoments::kFp32);
  Trained a(format), same(format), other_seed(format, {}, 43);
  for (Trained* trained : {&a, &same, &other_seed}) trained->update(1);
  EXPECT_EQ(share_that_differs(a, same), 0);
  EXPECT_GT(share_that_differs(a, other_seed), 0.01);
  StateUpdate first, second;
  first.update = 1;
  second.update = 2;
  uint32_t x = 0, y = 0;
  rounding_noise(noise_key(first, {}, 0), 0, 1, &x);
  rounding_noise(noise_key(second, {}, 0), 0, 1, &y);
  EXPECT_NE(x, y);
}

/// Weights of 1 that are pulled towards 2 by 400 updates of 1e-4, an 80th of bf16's step there: what part of
/// these 0.04 they come on the mean. `plain`: no master, rounded to nearest, as a product should not.
double way_towards_two(const StateFormat& format, bool plain = false) {
  Trained trained(format);
  for (size_t i = 0; i < trained.table.tensors().size(); ++i) trained.weights.tensor(i).fill_(1.0);
  trained.optimizer.emplace(trained.weights, [&] {
    AdamWOptions options;
    options.format = format;
    return options;
  }());
  double moved = 0, all = 0;
  for (int64_t t = 1; t <= 400; ++t) {
    for (int i = 0; i < trained.weights.num_segments(); ++i)
      trained.gradients.flat(i).copy_(trained.weights.flat(i).to(at::kFloat) - 2);
    trained.optimizer->update(trained.gradients, 1, 1e-4, t);
    if (!plain) continue;
    for (int i = 0; i < trained.weights.num_segments(); ++i)
      trained.optimizer->part("master", i).copy_(trained.weights.flat(i));
  }
  for (size_t i = 0; i < trained.table.tensors().size(); ++i) {
    moved += (trained.weights.tensor(i).to(at::kDouble) - 1).sum().item<double>();
    all += static_cast<double>(trained.weights.tensor(i).numel());
  }
  return moved / all / 0.04;
}

// pain: bf16 weights that stop moving at small lr.
TEST(MemoryModes, AllFollowTheFp32MasterWherePlainBf16Stalls) {
  const double master = way_towards_two({});
  EXPECT_NEAR(master, 1, 0.1);
  EXPECT_EQ(way_towards_two({}, /*plain=*/true), 0);
  EXPECT_EQ(way_towards_two(format_of(MasterWeights::kSplit, OptimizerMoments::kFp32)), master);
  for (const OptimizerMoments moments : kMoments) {
    EXPECT_NEAR(way_towards_two(format_of(MasterWeights::kNone, moments)), master, 0.05);
  }
}

TEST(SmallMoments, StayNearThoseOfFp32) {
  for (const OptimizerMoments moments : {OptimizerMoments::kBf16, OptimizerMoments::k8Bit}) {
    Trained exact(format_of(MasterWeights::kFp32, OptimizerMoments::kFp32));
    Trained small(format_of(MasterWeights::kFp32, moments));
    for (int64_t t = 1; t <= 30; ++t) {
      exact.update(t);
      small.update(t);
    }
    // Noise of one rounding is 1/16 of a number at most in 8 bits; of 30 it adds up to about as much.
    const double most = moments == OptimizerMoments::kBf16 ? 0.01 : 0.12;
    for (int i = 0; i < exact.weights.num_segments(); ++i) {
      const at::Tensor v = exact.optimizer->part("exp_avg_sq", i),
                       found = small.optimizer->part("exp_avg_sq", i);
      EXPECT_LT(((found - v).norm() / v.norm()).item<double>(), most);
      EXPECT_NEAR((found.sum() / v.sum()).item<double>(), 1, most / 10) << "no drift";
      const at::Tensor m = exact.optimizer->part("exp_avg", i), near = small.optimizer->part("exp_avg", i);
      EXPECT_LT(((near - m).norm() / m.norm()).item<double>(), most);
    }
  }
}

TEST(SmallMoments, ASecondMomentThatDecaysReachesItsNewLevel) {
  // Rounded to nearest, 8 bits and bf16 alike would never leave the old one: a decay is 0.1 % of a step of 12
  // %.
  for (const OptimizerMoments moments : kMoments) {
    Trained trained(format_of(MasterWeights::kFp32, moments));
    for (size_t i = 0; i < trained.table.tensors().size(); ++i) trained.gradients.tensor(i).fill_(0.1);
    trained.optimizer->update(trained.gradients, 1, 1e-3, 1);
    const double start = trained.optimizer->part("exp_avg_sq", 1).sum().item<double>();
    trained.gradients.zero();
    for (int64_t t = 2; t <= 701; ++t) trained.optimizer->update(trained.gradients, 1, 1e-3, t);
    const double end = trained.optimizer->part("exp_avg_sq", 1).sum().item<double>();
    EXPECT_NEAR(end / start, std::pow(0.999, 700), 0.02);
  }
}

}  // namespace
}  // namespace satune::trainer_test
