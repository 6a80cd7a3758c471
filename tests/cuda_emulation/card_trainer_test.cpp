// As card_ops_test.cpp, for the trainer.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/cuda_emulation/emulator.h"
#include "tests/model_configs.h"
#include "trainer/adamw.h"
#include "trainer/adamw_kernels.h"
#include "trainer/gradient_norm.h"
#include "trainer/sum_parts.h"

namespace satune::trainer_test {
namespace {

at::Tensor waves(int64_t count, double size, at::ScalarType type) {
  return at::sin(at::arange(count, at::kDouble) * 12.9898).mul(size).to(type);
}

TEST(CardTrainer, OnePassUpdatesStateAndWeightsToTheBitsOfTheCpu) {
  const TensorTable table(model_configs::config_of(
      {.vocabulary = 30, .hidden = 20, .ffn = 24, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 10}));
  const std::vector<bool> all(table.tensors().size(), true);
  const ParameterBuffers weights(table, all, at::kBFloat16, at::kCPU),
      gradients(table, all, at::kBFloat16, at::kCPU);
  for (int i = 0; i < weights.num_segments(); ++i) {
    weights.flat(i).copy_(waves(weights.flat(i).numel(), 0.5, at::kBFloat16));
    gradients.flat(i).copy_(waves(weights.flat(i).numel(), 0.01, at::kBFloat16));
  }
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
  AdamWCoefficients c{};
  c.gradient_scale = 0.37F;
  c.beta2 = 0.999F;
  c.one_minus_beta1 = static_cast<float>(1.0 - 0.9);
  c.one_minus_beta2 = static_cast<float>(1.0 - 0.999);
  c.decay = 1;
  c.step_size = static_cast<float>(1e-3 / (1.0 - 0.9));
  c.bias_correction2_sqrt = static_cast<float>(std::sqrt(1.0 - 0.999));
  c.epsilon = 1e-8F;
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

TEST(CardTrainer, NormAndSumOverRanksLaunchTheirKernels) {
  const at::Tensor values = waves(70000, 1, at::kBFloat16);
  const at::Tensor gradients[] = {values, values.narrow(0, 1, 9000), values.narrow(0, 0, 0)};
  const int64_t before = emulation::traffic().launches;
  const at::Tensor sum = sum_of_squares_on_card(gradients);
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
