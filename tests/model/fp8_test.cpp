// Layer projections as products of 8-bit floats.
#include "model/ops/fp8.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>

#include "model/fp8_weights.h"
#include "model/layer.h"
#include "model/llama.h"
#include "tests/model/late_copies.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::relative_difference;

at::Tensor numbers(int64_t rows, int64_t columns, double salt, at::ScalarType type = at::kBFloat16) {
  return (at::sin(at::arange(rows * columns, at::kDouble) * 12.9898 + salt) * 1.7)
      .view({rows, columns})
      .to(type);
}

/// What is stored, by rows or by columns, times the scale.
at::Tensor stored(const Fp8Matrix& matrix) {
  const bool rows = matrix.rows_RC.defined();
  const at::Tensor wide =
      (rows ? matrix.rows_RC : matrix.columns_CR).to(at::kFloat).to(at::kDouble) * matrix.scale;
  return rows ? wide : wide.t();
}

TEST(Fp8, RoundsAsLibTorch) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const auto& [format, element, largest] :
         {std::tuple(Fp8Format::kE4M3, at::kFloat8_e4m3fn, 448.0F),
          std::tuple(Fp8Format::kE5M2, at::kFloat8_e5m2, 57344.0F)}) {
      const at::Tensor wide = numbers(37, 50, 1, type), x = wide.narrow(1, 3, 40);
      const Fp8Matrix found = to_fp8(x, format, Fp8Layout::kBoth);
      EXPECT_EQ(found.scale.item<float>(), x.abs().max().item<float>() / largest);
      const at::Tensor scaled = x.to(at::kFloat) * (1.0F / found.scale.item<float>());
      const at::Tensor expected = scaled.clamp(-largest, largest).to(element);
      EXPECT_TRUE(at::equal(found.rows_RC.view(at::kByte), expected.view(at::kByte)));
      EXPECT_EQ(found.columns_CR.sizes(), (std::vector<int64_t>{40, 48}));
      EXPECT_TRUE(at::equal(found.columns_CR.view(at::kByte).narrow(1, 0, 37), expected.view(at::kByte).t()));
      EXPECT_EQ(found.columns_CR.view(at::kByte).narrow(1, 37, 11).max().item<int>(), 0);
    }
  }
}

TEST(Fp8, WhatIsNotFiniteShows) {
  for (const double odd :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    at::Tensor x = numbers(32, 16, 1);
    x[3][5] = odd;
    const Fp8Matrix bad = to_fp8(x, Fp8Format::kE4M3, Fp8Layout::kRows),
                    good = to_fp8(numbers(48, 16, 2), Fp8Format::kE4M3, Fp8Layout::kRows);
    const at::Tensor y = fp8_forward(bad, good, at::kBFloat16);
    EXPECT_FALSE(at::isfinite(y[3]).any().item<bool>());
  }
}

TEST(Fp8, ProductsAreThoseOfTheStoredNumbers) {
  for (const int64_t tokens : {1, 16, 23, 70}) {
    const Fp8Matrix x = to_fp8(numbers(tokens, 48, 1), Fp8Format::kE4M3, Fp8Layout::kBoth),
                    weight = to_fp8(numbers(32, 48, 2) * 0.01, Fp8Format::kE4M3, Fp8Layout::kBoth),
                    d_y = to_fp8(numbers(tokens, 32, 3) * 1e-6, Fp8Format::kE5M2, Fp8Layout::kBoth);
    for (const auto& [type, tolerance] : {std::pair(at::kFloat, 1e-6), std::pair(at::kBFloat16, 4e-3)}) {
      const at::Tensor y = fp8_forward(x, weight, type);
      EXPECT_EQ(y.scalar_type(), type);
      EXPECT_LT(relative_difference(y, at::mm(stored(x), stored(weight).t())), tolerance) << tokens;
      EXPECT_LT(
          relative_difference(fp8_backward_input(d_y, weight, type), at::mm(stored(d_y), stored(weight))),
          tolerance);
      const at::Tensor expected = at::mm(stored(d_y).t(), stored(x));
      at::Tensor d_weight = at::full({32, 48}, 7.0, type);
      fp8_backward_weight(d_y, x, d_weight, /*accumulate=*/false);
      EXPECT_LT(relative_difference(d_weight, expected), tolerance);
      fp8_backward_weight(d_y, x, d_weight, /*accumulate=*/true);
      EXPECT_LT(relative_difference(d_weight, 2 * expected), 2 * tolerance);
    }
  }
}

class Fp8Projection : public ::testing::TestWithParam<std::string> {};

/// q, k and v of a layer; with frozen ones in products of their own.
TEST_P(Fp8Projection, PassesAreThoseOfItsStoredMatrices) {
  const ModelConfig config = testing::small_config(2);
  const std::vector<bool> mask = match_unfrozen(TensorTable(config), {GetParam()});
  const Llama model = testing::make_model(config, at::kBFloat16, mask);
  const LayerWeights layer = bind_layer(model.weights(), 1, config.sharing);
  const int64_t first_slot = kProjectionSlots;  // of layer 1
  Fp8Weights weights(2 * kProjectionSlots, 0, /*keep=*/true);
  const at::Tensor x = numbers(19, config.hidden_size, 1), d_y = numbers(19, 160, 2) * 0.01;
  const at::Tensor x8 = stored(to_fp8(x, Fp8Format::kE4M3, Fp8Layout::kRows));

  ProjectionInput input{x, {}};
  const at::Tensor y = layer.qkv.forward8(input, Fp8Layout::kBoth, {}, weights);
  ParameterBuffers gradients = model.make_gradients(at::kFloat);
  for (int segment = 0; segment < gradients.num_segments(); ++segment) gradients.flat(segment).fill_(0.5);
  const at::Tensor d_x =
      layer.qkv.backward8(d_y, input, gradients, /*accumulate=*/true, /*need_input=*/true, weights);
  EXPECT_FALSE(input.x_NI.defined() || input.x8.columns_CR.defined());

  at::Tensor expected_d_x = at::zeros({19, config.hidden_size}, at::kDouble);
  int64_t column = 0;
  size_t product = 0;
  for (const at::Tensor& weight : layer.qkv.weights()) {
    const int64_t outputs = weight.size(0);
    const at::Tensor w8 =
        stored(weights.get(first_slot + product++, weight, /*trained=*/true, Fp8Layout::kRows));
    EXPECT_LT(relative_difference(y.narrow(1, column, outputs), at::mm(x8, w8.t())), 4e-3);
    const at::Tensor d8 = stored(to_fp8(d_y.narrow(1, column, outputs), Fp8Format::kE5M2, Fp8Layout::kRows));
    expected_d_x += at::mm(d8, w8);
    // The gradients of the tensors in it, one after another.
    const at::Tensor d_weight = at::mm(d8.t(), x8);
    for (int64_t row = 0; row < outputs;) {
      for (size_t i = 0; i < model.table().tensors().size(); ++i) {
        const TensorInfo& info = model.table().tensors()[i];
        const bool here =
            info.segment == 2 && info.shape.size() == 2 &&
            model.weights().tensor(i).const_data_ptr() ==
                static_cast<const char*>(weight.const_data_ptr()) + row * config.hidden_size * 2;
        if (!here) continue;
        if (gradients.selected(i)) {
          EXPECT_LT(relative_difference(gradients.tensor(i) - 0.5, d_weight.narrow(0, row, info.shape[0])),
                    1e-5)
              << info.name;
        }
        row += info.shape[0];
        break;
      }
    }
    column += outputs;
  }
  EXPECT_LT(relative_difference(d_x, expected_d_x), 4e-3);

  // Where nobody needs the input's gradient, the weights' are the same.
  ParameterBuffers again = model.make_gradients(at::kFloat);
  for (int segment = 0; segment < again.num_segments(); ++segment) again.flat(segment).fill_(0.5);
  ProjectionInput once_more{x, {}};
  EXPECT_FALSE(layer.qkv.backward8(d_y, once_more, again, true, /*need_input=*/false, weights).defined());
  for (int segment = 0; segment < again.num_segments(); ++segment)
    EXPECT_TRUE(at::equal(again.flat(segment), gradients.flat(segment)));
}

INSTANTIATE_TEST_SUITE_P(Trained, Fp8Projection, ::testing::Values("model", ".*k_proj", ".*v_proj"),
                         [](const auto& info) {
                           return info.param.substr(info.param.find_first_not_of(".*"));
                         });

std::vector<at::Tensor> results(Llama& model, Recording recording) {
  SegmentHooks hooks;
  ParameterBuffers gradients = model.make_gradients(at::kBFloat16);
  const DeviceBatch batch = testing::make_batch({33, 20, 5}, model.config().vocab_size);
  const LossSums sums = model.forward_backward(batch, 0.125, gradients, false,
                                               testing::all_layers(model.config(), recording), hooks);
  std::vector<at::Tensor> all{sums.loss, sums.correct};
  for (int segment = 0; segment < gradients.num_segments(); ++segment) all.push_back(gradients.flat(segment));
  return all;
}

bool same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const at::Tensor& x, const at::Tensor& y) { return at::equal(x, y); });
}

class Fp8Llama : public ::testing::TestWithParam<const char*> {};

TEST_P(Fp8Llama, HasTheSameBitsHoweverItKeepsThem) {
  const std::string shared = GetParam();
  const ModelConfig config =
      shared.empty() ? testing::small_config(6) : testing::shared_config(shared, AnchorRule::kBefore, 6);
  Llama model = testing::make_model(config, at::kBFloat16);
  model.use_fp8(/*keep_weights=*/true);
  const auto expected = results(model, Recording::kKeep);
  for (const Recording recording : {Recording::kKeep, Recording::kSelective, Recording::kRecompute})
    EXPECT_TRUE(same(results(model, recording), expected)) << static_cast<int>(recording);
  model.offload_activations_by(std::make_unique<testing::LateCopies>());
  for (const Recording recording : {Recording::kKeep, Recording::kSelective, Recording::kRecompute})
    EXPECT_TRUE(same(results(model, recording), expected)) << static_cast<int>(recording);
  model.use_fp8(/*keep_weights=*/false);
  EXPECT_TRUE(same(results(model, Recording::kSelective), expected));
}

INSTANTIATE_TEST_SUITE_P(Plans, Fp8Llama, ::testing::Values("", "3-4"));

/// 8 bits leave about 3 % of a product, and 6 % of a gradient; something read in place of another leaves all.
TEST(Fp8, GradientsStayNearThoseOf16Bits) {
  const ModelConfig config = testing::shared_config("3-4", AnchorRule::kBefore, 6);
  Llama model = testing::make_model(config, at::kBFloat16);
  ParameterBuffers wide = model.make_gradients(at::kFloat), narrow = model.make_gradients(at::kFloat);
  const DeviceBatch batch = testing::make_batch({33, 20, 5}, config.vocab_size);
  SegmentHooks hooks;
  const auto policy = testing::all_layers(config, Recording::kKeep);
  const double loss = model.forward_backward(batch, 1, wide, false, policy, hooks).loss.item<double>();
  const double evaluated = model.evaluate(batch).loss.item<double>();
  model.use_fp8(/*keep_weights=*/true);
  EXPECT_NEAR(model.forward_backward(batch, 1, narrow, false, policy, hooks).loss.item<double>() / loss, 1,
              0.03);
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    const double apart = relative_difference(narrow.tensor(i), wide.tensor(i));
    EXPECT_LT(apart, 0.35) << model.table().tensors()[i].name;
    EXPECT_GT(apart, 1e-3) << model.table().tensors()[i].name;
  }
  EXPECT_EQ(model.evaluate(batch).loss.item<double>(), evaluated)
      << "what reads the model does so in 16 bits";
}

TEST(Fp8, WeightsInEightBitsAreMadeAnewOnceTheyChange) {
  const ModelConfig config = testing::small_config(2);
  Llama model = testing::make_model(config, at::kBFloat16),
        other = testing::make_model(config, at::kBFloat16);
  model.use_fp8(true);
  other.use_fp8(true);
  const auto before = results(model, Recording::kKeep);
  for (Llama* one : {&model, &other}) one->weights().tensor("model.layers.0.mlp.down_proj.weight").mul_(1.5);
  EXPECT_TRUE(same(results(model, Recording::kKeep), before)) << "kept until it is told";
  model.weights_changed();
  EXPECT_FALSE(same(results(model, Recording::kKeep), before));
  EXPECT_TRUE(same(results(model, Recording::kKeep), results(other, Recording::kKeep)));
}

TEST(Fp8Weights, WhatNoBackwardReadsIsKeptByRowsAlone) {
  const at::Tensor weight = numbers(32, 16, 1);
  Fp8Weights weights(2, /*first_of_backward=*/1, /*keep=*/true);
  EXPECT_FALSE(weights.get(0, weight, /*trained=*/false, Fp8Layout::kRows).columns_CR.defined());
  const Fp8Matrix trained = weights.get(1, weight, /*trained=*/true, Fp8Layout::kRows);
  EXPECT_TRUE(trained.columns_CR.defined());
  const at::Tensor frozen_rows = weights.get(0, weight, false, Fp8Layout::kRows).rows_RC;
  weights.changed();
  EXPECT_TRUE(weights.get(0, weight, false, Fp8Layout::kRows).rows_RC.is_same(frozen_rows)) << "as it was";
  EXPECT_FALSE(weights.get(1, weight, true, Fp8Layout::kRows).rows_RC.is_same(trained.rows_RC));
}

TEST(Fp8, ProjectionsOfOtherSizesStay) {
  ModelConfig config = testing::small_config(2);
  config.intermediate_size = 72;  // gate and up: 144 outputs, which would do; one block, as all train
  Llama model = testing::make_model(config, at::kBFloat16);
  EXPECT_EQ(model.projections().all, 8);
  EXPECT_EQ(model.projections().take_fp8, 6);  // not down, of 72 inputs
  model.use_fp8(true);
  for (const Recording recording : {Recording::kKeep, Recording::kRecompute})
    EXPECT_TRUE(at::isfinite(results(model, recording)[0]).item<bool>());
  EXPECT_TRUE(same(results(model, Recording::kKeep), results(model, Recording::kRecompute)));
}

}  // namespace
}  // namespace satune
