// As card_ops_test.cpp, for the trainer.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/cuda_emulation/emulator.h"
#include "tests/model_configs.h"
#include "trainer/adamw.h"
#include "trainer/adamw_kernels.h"
#include "trainer/adamw_tiles.h"
#include "trainer/gradient_norm.h"
#include "trainer/sum_parts.h"

namespace satune::trainer_test {
namespace {

at::Tensor waves(int64_t count, double size, at::ScalarType type) {
  return at::sin(at::arange(count, at::kDouble) * 12.9898).mul(size).to(type);
}

/// Of update number t with AdamWOptions' betas, a learning rate of 1e-3 and gradients times 0.37.
AdamWCoefficients coefficients_of(int64_t t, double weight_decay) {
  const auto power = static_cast<double>(t);
  AdamWCoefficients c{};
  c.gradient_scale = 0.37F;
  c.beta2 = 0.999F;
  c.one_minus_beta1 = static_cast<float>(1.0 - 0.9);
  c.one_minus_beta2 = static_cast<float>(1.0 - 0.999);
  c.decay = static_cast<float>(1.0 - 1e-3 * weight_decay);
  c.step_size = static_cast<float>(1e-3 / (1.0 - std::pow(0.9, power)));
  c.bias_correction2_sqrt = static_cast<float>(std::sqrt(1.0 - std::pow(0.999, power)));
  c.epsilon = 1e-8F;
  return c;
}

/// Weights and gradients of a small model.
struct Buffers {
  Buffers(at::ScalarType weight_type, at::ScalarType gradient_type)
      : table(model_configs::config_of({.vocabulary = 30,
                                        .hidden = 20,
                                        .ffn = 24,
                                        .layers = 1,
                                        .heads = 2,
                                        .kv_heads = 1,
                                        .head_dim = 10})),
        weights(table, all(), weight_type, at::kCPU),
        gradients(table, all(), gradient_type, at::kCPU) {
    for (int i = 0; i < weights.num_segments(); ++i) {
      weights.flat(i).copy_(waves(weights.flat(i).numel(), 0.5, weight_type));
      gradients.flat(i).copy_(waves(weights.flat(i).numel(), 0.01, gradient_type));
    }
  }
  std::vector<bool> all() const { return std::vector<bool>(table.tensors().size(), true); }

  TensorTable table;
  ParameterBuffers weights, gradients;
};

TEST(CardTrainer, OnePassUpdatesStateAndWeightsToTheBitsOfTheCpu) {
  const Buffers buffers(at::kBFloat16, at::kBFloat16);
  const ParameterBuffers &weights = buffers.weights, &gradients = buffers.gradients;
  AdamW optimizer(weights, AdamWOptions());
  std::vector<at::Tensor> masters, moments, squares;
  for (int i = 0; i < weights.num_segments(); ++i) {
    masters.push_back(optimizer.part("master", i).clone());
    moments.push_back(optimizer.part("exp_avg", i).clone());
    squares.push_back(optimizer.part("exp_avg_sq", i).clone());
  }
  const int64_t before = emulation::traffic().launches;
  optimizer.update(gradients, 0.37, 1e-3, 1);
  EXPECT_GE(emulation::traffic().launches - before, weights.num_segments());
  const AdamWCoefficients c = coefficients_of(1, 0);
  for (int i = 0; i < weights.num_segments(); ++i) {
    const int64_t used = weights.used(i);  // padding is nobody's
    adamw_update_bf16(masters[i].data_ptr<float>(), moments[i].data_ptr<float>(),
                      squares[i].data_ptr<float>(),
                      static_cast<const uint16_t*>(gradients.flat(i).const_data_ptr()), used, c);
    EXPECT_TRUE(at::equal(optimizer.part("master", i), masters[i])) << i;
    EXPECT_TRUE(at::equal(optimizer.part("exp_avg", i), moments[i])) << i;
    EXPECT_TRUE(at::equal(optimizer.part("exp_avg_sq", i), squares[i])) << i;
    EXPECT_TRUE(
        at::equal(weights.flat(i).narrow(0, 0, used), masters[i].narrow(0, 0, used).to(at::kBFloat16)))
        << i;
  }
}

TEST(CardTrainer, AScaleOnTheCardUpdatesAsTheHostsOrNotAtAll) {
  for (const OptimizerMoments moments : {OptimizerMoments::kFp32, OptimizerMoments::k8Bit}) {
    AdamWOptions options;
    options.format.moments = moments;
    const Buffers told(at::kBFloat16, at::kBFloat16), decided(at::kBFloat16, at::kBFloat16);
    AdamW expected(told.weights, options), optimizer(decided.weights, options);
    const auto update = [&](double scale, int64_t t) {
      optimizer.update(shards_of(decided.gradients, {}), at::scalar_tensor(scale, at::kFloat), 1e-3, t);
    };
    const auto expect_equal = [&](const char* what) {
      for (int i = 0; i < told.weights.num_segments(); ++i) {
        for (const std::string_view part : kOptimizerParts)
          EXPECT_TRUE(at::equal(optimizer.part(part, i), expected.part(part, i))) << what << " " << part;
        EXPECT_TRUE(at::equal(decided.weights.flat(i), told.weights.flat(i))) << what;
      }
    };
    expected.update(told.gradients, static_cast<double>(0.37F), 1e-3, 1);
    update(0.37, 1);
    expect_equal("decided");
    update(std::nan(""), 2);
    expect_equal("not at all");
  }
}

/// Two updates of a share on the card and by update_tiles().
void expect_the_cpus_state(const StateFormat& format, const Buffers& buffers, const World& owner) {
  const ParameterBuffers& weights = buffers.weights;
  std::vector<StateArrays> expected;
  std::vector<std::vector<StatePiece>> pieces;
  std::vector<at::Tensor> masters;
  for (const at::Tensor& shard : shards_of(weights, owner)) {
    const auto segment = static_cast<int>(masters.size());
    const bool apart = format.master_weights == MasterWeights::kFp32;
    masters.push_back(apart ? shard.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true) : shard.clone());
    StateArrays arrays;
    arrays.master = format.master_weights == MasterWeights::kSplit ? StateArray::split(masters.back())
                                                                   : StateArray(masters.back());
    arrays.exp_avg = StateArray(moment_form(format.moments, false), shard.numel(), at::kCPU);
    arrays.exp_avg_sq = StateArray(moment_form(format.moments, true), shard.numel(), at::kCPU);
    expected.push_back(arrays);
    pieces.emplace_back();
    for (const ShardPiece& piece : shard_pieces(weights, segment, owner))
      pieces.back().push_back({piece, buffers.table.tensors()[piece.tensor].decay});
  }

  AdamWOptions options;
  options.weight_decay = 0.1;
  options.format = format;
  options.seed = 0x123456789abcdef0;
  AdamW optimizer(weights, options, owner);
  const std::vector<at::Tensor> gradients = shards_of(buffers.gradients, owner);
  for (int64_t t = 1; t <= 2; ++t) {
    const int64_t before = emulation::traffic().launches;
    optimizer.update(gradients, 0.37, 1e-3, t);
    int64_t launches = 0;
    const StateUpdate update{coefficients_of(t, 0.1), coefficients_of(t, 0), options.seed, t};
    for (size_t i = 0; i < expected.size(); ++i) {
      launches += pieces[i].empty() ? 0 : 1;
      // The CPU has no fp16 gradients.
      const at::Tensor gradient =
          gradients[i].scalar_type() == at::kHalf ? gradients[i].to(at::kFloat) : gradients[i];
      update_tiles(expected[i], gradient, pieces[i], update);
    }
    EXPECT_EQ(emulation::traffic().launches - before, launches);
  }
  const std::vector<at::Tensor> shards = shards_of(weights, owner);
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto arrays = expected[i].all();
    for (size_t k = 0; k < arrays.size(); ++k) {
      EXPECT_TRUE(at::equal(optimizer.part(kOptimizerParts[k], static_cast<int>(i)),
                            arrays[k]->values(0, shards[i].numel())))
          << kOptimizerParts[k] << " of segment " << i;
    }
    EXPECT_TRUE(at::equal(shards[i], masters[i].to(shards[i].scalar_type()))) << i;
  }
}

TEST(CardTrainer, MemoryModesUpdateASegmentInOneLaunchToTheBitsOfTheCpu) {
  constexpr MasterWeights kMasters[] = {MasterWeights::kFp32, MasterWeights::kSplit, MasterWeights::kNone};
  constexpr OptimizerMoments kMoments[] = {OptimizerMoments::kFp32, OptimizerMoments::kBf16,
                                           OptimizerMoments::k8Bit};
  constexpr at::ScalarType kTypes[][2] = {{at::kFloat, at::kFloat},
                                          {at::kBFloat16, at::kFloat},
                                          {at::kBFloat16, at::kBFloat16},
                                          {at::kHalf, at::kFloat},
                                          {at::kHalf, at::kHalf}};
  for (const auto& [weight_type, gradient_type] : kTypes) {
    for (const MasterWeights master : kMasters) {
      if (master != MasterWeights::kFp32 && weight_type != at::kBFloat16) continue;
      for (const OptimizerMoments moments : kMoments) {
        if (master == MasterWeights::kFp32 && moments == OptimizerMoments::kFp32) continue;
        StateFormat format;
        format.master_weights = master;
        format.moments = moments;
        for (const World& owner : {World{0, 1}, World{1, 2}})
          expect_the_cpus_state(format, Buffers(weight_type, gradient_type), owner);
      }
    }
  }
}

TEST(CardTrainer, NormAndSumOverRanksLaunchTheirKernels) {
  const at::Tensor values = waves(70000, 1, at::kBFloat16);
  const at::Tensor gradients[] = {values, values.narrow(0, 1, 9000), values.narrow(0, 0, 0)};
  const int64_t before = emulation::traffic().launches;
  const at::Tensor sum = sum_of_squares(gradients);
  EXPECT_EQ(emulation::traffic().launches - before, 3);
  const double expected = values.to(at::kDouble).square().sum().item<double>() +
                          gradients[1].to(at::kDouble).square().sum().item<double>();
  EXPECT_NEAR(sum.item<double>(), expected, 1e-12 * expected);
  EXPECT_EQ(gradient_sum_of_squares(gradients), sum.item<double>());

  const at::Tensor total = at::ones({9000}, at::kFloat);
  sum_parts({gradients[1], values.narrow(0, 9, 9000)}, total, true);
  EXPECT_TRUE(at::equal(total, at::ones({9000}, at::kFloat) + gradients[1].to(at::kFloat) +
                                   values.narrow(0, 9, 9000).to(at::kFloat)));
}

}  // namespace
}  // namespace satune::trainer_test
