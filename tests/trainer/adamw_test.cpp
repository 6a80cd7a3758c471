#include "trainer/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "data/random.h"
#include "tests/model_configs.h"
#include "trainer/adamw_kernels.h"
#include "trainer/gradient_norm.h"
#include "trainer/update_decision.h"

namespace satune::trainer_test {
namespace {

ModelConfig config_of_two_layers() {
  return model_configs::config_of(
      {.vocabulary = 1500, .hidden = 40, .ffn = 72, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 10});
}

void fill(const at::Tensor& tensor, double scale, std::string_view name) {
  RandomStream random(1, name);
  at::Tensor values = at::empty(tensor.sizes(), at::kDouble);
  double* data = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    data[i] = scale * (static_cast<double>(random.below(20001)) / 10000.0 - 1.0);
  }
  tensor.copy_(values);
}

struct Fixture {
  explicit Fixture(at::ScalarType weight_type = at::kFloat, at::ScalarType gradient_type = at::kFloat)
      : table(config_of_two_layers()),
        weights(table, std::vector<bool>(table.tensors().size(), true), weight_type, at::kCPU),
        gradients(table, std::vector<bool>(table.tensors().size(), true), gradient_type, at::kCPU) {
    for (size_t i = 0; i < table.tensors().size(); ++i) {
      fill(weights.tensor(i), 0.5, "weight " + table.tensors()[i].name);
      fill(gradients.tensor(i), 0.01, "gradient " + table.tensors()[i].name);
    }
  }
  TensorTable table;
  ParameterBuffers weights, gradients;
};

AdamWOptions options_with_decay() {
  AdamWOptions options;
  options.weight_decay = 0.1;
  return options;
}

/// torch.optim.AdamW in fp64, element by element, from the same fp32 start and gradients.
struct Reference {
  at::Tensor p, m, v;
  explicit Reference(const at::Tensor& weight)
      : p(weight.to(at::kDouble).clone()), m(at::zeros_like(p)), v(at::zeros_like(p)) {}
  void update(const at::Tensor& gradient, double scale, double lr, double decay, int64_t t) {
    const at::Tensor g = gradient.to(at::kDouble) * scale;
    p = p * (1 - lr * decay);
    m = 0.9 * m + (1 - 0.9) * g;
    v = 0.999 * v + (1 - 0.999) * g * g;
    const double bias1 = 1 - std::pow(0.9, t), bias2 = 1 - std::pow(0.999, t);
    p = p - lr / bias1 * m / (v.sqrt() / std::sqrt(bias2) + 1e-8);
  }
};

at::Tensor master_of(const AdamW& optimizer, size_t tensor) {
  const TensorInfo& info = optimizer.weights().table().tensors()[tensor];
  return optimizer.part("master", tensor, {0, info.numel()}).view(info.shape);
}

double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  return ((found.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

TEST(AdamW, FollowsTheFormulaInDoublePrecision) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Fixture fixture(type, type);
    std::vector<Reference> references;
    for (size_t i = 0; i < fixture.table.tensors().size(); ++i)
      references.emplace_back(fixture.weights.tensor(i));
    AdamW optimizer(fixture.weights, options_with_decay());
    for (int64_t t = 1; t <= 5; ++t) {
      const double lr = 1e-3 * static_cast<double>(t);
      optimizer.update(fixture.gradients, 0.37, lr, t);
      for (size_t i = 0; i < references.size(); ++i) {
        const TensorInfo& info = fixture.table.tensors()[i];
        const bool norm = info.name.find("norm") != std::string::npos;
        references[i].update(fixture.gradients.tensor(i), 0.37, lr, norm ? 0.0 : 0.1, t);
        EXPECT_LT(relative_error(master_of(optimizer, i), references[i].p), 1e-7)
            << info.name << " update " << t;
      }
    }
  }
}

TEST(AdamW, DecayOnNormsOrAnotherRateWouldBeSeen) {
  Fixture fixture;
  const auto norm =
      static_cast<size_t>(fixture.table.find("model.norm.weight") - fixture.table.tensors().data());
  Reference decayed(fixture.weights.tensor(norm)), off(fixture.weights.tensor(norm));
  AdamW optimizer(fixture.weights, options_with_decay());
  optimizer.update(fixture.gradients, 1.0, 1e-2, 1);
  decayed.update(fixture.gradients.tensor(norm), 1.0, 1e-2, 0.1, 1);
  off.update(fixture.gradients.tensor(norm), 1.0, 1.001e-2, 0.0, 1);
  EXPECT_GT(relative_error(master_of(optimizer, norm), decayed.p), 1e-5);
  EXPECT_GT(relative_error(master_of(optimizer, norm), off.p), 1e-5);
}

TEST(AdamW, RoundsWeightsToNearestEven) {
  Fixture fixture(at::kBFloat16, at::kBFloat16);
  AdamW optimizer(fixture.weights, options_with_decay());
  optimizer.update(fixture.gradients, 1.0, 1e-3, 1);
  for (size_t i = 0; i < fixture.table.tensors().size(); ++i) {
    EXPECT_TRUE(at::equal(fixture.weights.tensor(i), master_of(optimizer, i).to(at::kBFloat16)));
  }
  const float special[] = {
      std::numeric_limits<float>::infinity(), -0.0F, std::nanf(""), 3.4e38F, 1.00390625F, 1.01171875F};
  uint16_t rounded[std::size(special)];
  round_to_bf16(special, rounded, std::size(special));
  const at::Tensor expected = at::from_blob(const_cast<float*>(special), {6}).to(at::kBFloat16);
  EXPECT_EQ(std::memcmp(expected.const_data_ptr(), rounded, sizeof(uint16_t) * 2), 0);
  EXPECT_EQ(std::memcmp(static_cast<const uint16_t*>(expected.const_data_ptr()) + 3, rounded + 3, 6), 0);
  EXPECT_EQ(rounded[2] & 0x7f80U, 0x7f80U);
  EXPECT_NE(rounded[2] & 0x007fU, 0U) << "NaN became infinity";
}

TEST(AdamW, ThreadsAndShardsChangeNoBit) {
  Fixture whole;
  at::set_num_threads(1);
  AdamW one(whole.weights, options_with_decay());
  one.update(whole.gradients, 0.5, 1e-3, 1);
  const double norm = gradient_sum_of_squares(whole.gradients);
  at::set_num_threads(3);
  EXPECT_EQ(gradient_sum_of_squares(whole.gradients), norm);
  Fixture shared;
  for (int64_t rank = 0; rank < 3; ++rank) {
    AdamW part(shared.weights, options_with_decay(), {rank, 3});
    part.update(shared.gradients, 0.5, 1e-3, 1);
  }
  at::set_num_threads(1);
  for (int i = 0; i < whole.weights.num_segments(); ++i) {
    EXPECT_TRUE(at::equal(whole.weights.flat(i), shared.weights.flat(i))) << "segment " << i;
  }
}

TEST(GradientNorm, IsTheNormInDoublePrecision) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Fixture fixture(type, type);
    double expected = 0;
    for (size_t i = 0; i < fixture.table.tensors().size(); ++i) {
      expected += fixture.gradients.tensor(i).to(at::kDouble).square().sum().item<double>();
    }
    EXPECT_NEAR(gradient_sum_of_squares(fixture.gradients), expected, 1e-12 * expected);
  }
}

// rival: a clip that divides by the norm twice.
TEST(GradientNorm, ClipsAsTorchDoes) {
  EXPECT_DOUBLE_EQ(clip_factor(4.0, 1.0), 1.0 / (4.0 + 1e-6));
  EXPECT_EQ(clip_factor(1.0 - 1e-6, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(clip_factor(4.0, 0.0), 1.0) << "0 = no clipping";
}

}  // namespace
}  // namespace satune::trainer_test
