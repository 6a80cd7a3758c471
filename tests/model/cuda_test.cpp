// The CUDA path against the CPU path. Skipped by name where there is no card.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/llama.h"
#include "model/ops/embedding.h"
#include "model/ops/fp8.h"
#include "model/ops/linear.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"
#include "model/ops/rope.h"
#include "model/ops/swiglu.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::relative_difference;

class Cuda : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
  double tolerance() const {
    return GetParam() == at::kDouble ? 1e-12 : GetParam() == at::kFloat ? 1e-5 : 2e-2;
  }
};

at::Tensor wave(at::IntArrayRef shape, at::ScalarType type) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return at::sin(at::arange(count, at::kDouble) * 12.9898).mul(2).view(shape).to(type);
}

DeviceBatch on_card(const DeviceBatch& batch) {
  DeviceBatch there = batch;
  there.tokens_N = batch.tokens_N.cuda();
  there.targets = {batch.targets.rows_M.cuda(), batch.targets.ids_M.cuda()};
  there.positions_N = batch.positions_N.cuda();
  return there;
}

TEST_P(Cuda, SwigluAndRopeEqualTheCpu) {
  const at::Tensor gate_up = wave({37, 90}, GetParam()), d_act = wave({37, 45}, GetParam());
  EXPECT_LT(relative_difference(swiglu_forward(gate_up.cuda()).cpu(), swiglu_forward(gate_up)), tolerance());
  EXPECT_LT(relative_difference(swiglu_backward(d_act.cuda(), gate_up.cuda()).cpu(),
                                swiglu_backward(d_act, gate_up)),
            tolerance());
  const ModelConfig config = testing::small_config();
  const at::Tensor x = wave({20, 8, 16}, GetParam()), positions = at::arange(20, at::kLong);
  at::Tensor on_cpu = x.clone(), on_card = x.cuda();
  rope_apply(on_cpu.narrow(1, 0, 5), positions, make_rope_table(config, 20, GetParam(), at::kCPU), true);
  rope_apply(on_card.narrow(1, 0, 5), positions.cuda(), make_rope_table(config, 20, GetParam(), at::kCUDA),
             true);
  EXPECT_LT(relative_difference(on_card.cpu(), on_cpu), tolerance());
}

TEST_P(Cuda, RmsNormEqualsTheCpu) {
  // Wide and narrow rows, with 16-byte accesses and without; more rows than blocks.
  for (const auto& [rows, width] : {std::pair{600, 64}, std::pair{5, 4096}, std::pair{7, 37}}) {
    const at::Tensor x = wave({rows, width}, GetParam()), d_y = wave({rows, width}, GetParam()).flip(0);
    const at::Tensor weight = wave({width}, GetParam()), d_weight = at::zeros({width}, GetParam());
    const RmsNormOut cpu = rms_norm_forward(x, weight, 1e-5);
    const RmsNormOut card = rms_norm_forward(x.cuda(), weight.cuda(), 1e-5);
    EXPECT_LT(relative_difference(card.y_NC.cpu(), cpu.y_NC), tolerance());
    EXPECT_LT(relative_difference(card.rstd_N.cpu(), cpu.rstd_N), 1e-5);
    const at::Tensor there = d_weight.cuda();
    const at::Tensor d_x = rms_norm_backward(d_y.contiguous(), x, weight, cpu.rstd_N, x, d_weight, false);
    const at::Tensor d_x_card = rms_norm_backward(d_y.contiguous().cuda(), x.cuda(), weight.cuda(),
                                                  cpu.rstd_N.cuda(), x.cuda(), there, false);
    EXPECT_LT(relative_difference(d_x_card.cpu(), d_x), tolerance());
    EXPECT_LT(relative_difference(there.cpu(), d_weight), tolerance());
  }
}

TEST_P(Cuda, WeightGradientsAreAddedInFp32) {
  if (GetParam() == at::kDouble) GTEST_SKIP() << "its gradients are fp64";
  const at::Tensor d_y = wave({70, 24}, GetParam()), x = wave({70, 16}, GetParam());
  const at::Tensor expected = at::mm(d_y.to(at::kDouble).t(), x.to(at::kDouble));
  const at::Tensor d_weight = at::zeros({24, 16}, at::kFloat).cuda();
  linear_backward_weight(d_y.cuda(), x.cuda(), d_weight, false);
  EXPECT_LT(relative_difference(d_weight.cpu(), expected), 1e-6);
  linear_backward_weight(d_y.cuda(), x.cuda(), d_weight, true);
  EXPECT_LT(relative_difference(d_weight.cpu(), 2 * expected), 1e-6);
}

TEST_P(Cuda, HeadAndEmbeddingEqualTheCpuAndRepeatTheirBits) {
  for (const int64_t vocabulary : {1000, 333}) {
    const at::Tensor hidden = wave({50, 24}, GetParam()), weight = wave({vocabulary, 24}, GetParam());
    const Targets targets{at::arange(50, at::kLong), at::arange(50, at::kLong).mul(7).remainder(vocabulary)};
    at::Tensor d_weight = at::zeros_like(weight), there = d_weight.cuda();
    const auto cpu = linear_cross_entropy_backward(hidden, weight, targets, 0.3, d_weight, false);
    const auto card = linear_cross_entropy_backward(
        hidden.cuda(), weight.cuda(), {targets.rows_M.cuda(), targets.ids_M.cuda()}, 0.3, there, false);
    EXPECT_NEAR(card.sums.loss.item<double>() / cpu.sums.loss.item<double>(), 1, tolerance());
    EXPECT_LT(relative_difference(card.d_hidden_NC.cpu(), cpu.d_hidden_NC), tolerance());
    EXPECT_LT(relative_difference(there.cpu(), d_weight), tolerance());
  }
  const at::Tensor tokens = at::arange(300, at::kLong).square().remainder(17),
                   d_out = wave({300, 40}, GetParam());
  at::Tensor expected = at::zeros({20, 40}, GetParam());
  embedding_backward(d_out, tokens, expected, false);
  for (int run = 0; run < 2; ++run) {
    at::Tensor found = at::zeros({20, 40}, GetParam()).cuda();
    embedding_backward(d_out.cuda(), tokens.cuda(), found, false);
    EXPECT_TRUE(at::equal(found.cpu(), expected)) << "run " << run;
  }
}

TEST_P(Cuda, LossAndGradientsEqualTheCpu) {
  const ModelConfig config = testing::shared_config("4-6", AnchorRule::kBefore);
  Llama cpu = testing::make_model(config, GetParam());
  Llama card(config, {}, GetParam(), at::kCUDA);
  for (size_t i = 0; i < cpu.table().tensors().size(); ++i) {
    card.weights().tensor(i).copy_(cpu.weights().tensor(i));
  }
  const DeviceBatch batch = testing::make_batch({30, 4, 17}, config.vocab_size);
  const DeviceBatch there = on_card(batch);
  SegmentHooks hooks;
  for (const Recording recording : {Recording::kKeep, Recording::kSelective, Recording::kRecompute}) {
    ParameterBuffers expected = cpu.make_gradients(GetParam()), found = card.make_gradients(GetParam());
    const auto policy = testing::all_layers(config, recording);
    const LossSums a = cpu.forward_backward(batch, 0.1, expected, false, policy, hooks);
    const LossSums b = card.forward_backward(there, 0.1, found, false, policy, hooks);
    EXPECT_NEAR(b.loss.item<double>() / a.loss.item<double>(), 1.0, tolerance());
    for (size_t i = 0; i < cpu.table().tensors().size(); ++i) {
      EXPECT_LT(relative_difference(found.tensor(i).cpu(), expected.tensor(i)), 10 * tolerance())
          << cpu.table().tensors()[i].name;
    }
  }
}

TEST_P(Cuda, OffloadedActivationsComeBackToTheBit) {
  const ModelConfig config = testing::shared_config("4-6", AnchorRule::kBefore);
  Llama model(config, {}, GetParam(), at::kCUDA);
  const Llama cpu = testing::make_model(config, GetParam());
  for (size_t i = 0; i < cpu.table().tensors().size(); ++i)
    model.weights().tensor(i).copy_(cpu.weights().tensor(i));
  const auto pass = [&](Recording recording) {
    ParameterBuffers gradients = model.make_gradients(GetParam());
    SegmentHooks hooks;
    // Enough micro-batches, of changing lengths, for the events of the copies to go around.
    for (int64_t length = 40; length > 0; length -= 4) {
      model.forward_backward(on_card(testing::make_batch({length, 17}, config.vocab_size)), 0.1, gradients,
                             length < 40, testing::all_layers(config, recording), hooks);
    }
    std::vector<at::Tensor> all;
    for (int segment = 0; segment < gradients.num_segments(); ++segment)
      all.push_back(gradients.flat(segment).cpu());
    return all;
  };
  for (const Recording recording : {Recording::kKeep, Recording::kSelective, Recording::kRecompute}) {
    model.offload_activations_by(nullptr);
    const auto expected = pass(recording);
    model.offload_activations_by(make_copy_queue(model.weights().device()));
    const auto found = pass(recording);
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_TRUE(at::equal(found[i], expected[i])) << "segment " << i;
  }
}

TEST_P(Cuda, EightBitMatricesAreThoseOfTheCpu) {
  const at::Tensor x = wave({70, 48}, GetParam());
  for (const Fp8Format format : {Fp8Format::kE4M3, Fp8Format::kE5M2}) {
    const Fp8Matrix here = to_fp8(x, format, Fp8Layout::kBoth),
                    there = to_fp8(x.cuda(), format, Fp8Layout::kBoth);
    EXPECT_EQ(there.scale.item<float>(), here.scale.item<float>());
    EXPECT_TRUE(at::equal(there.rows_RC.cpu().view(at::kByte), here.rows_RC.view(at::kByte)));
    EXPECT_TRUE(at::equal(there.columns_CR.cpu().view(at::kByte), here.columns_CR.view(at::kByte)));
  }
}

TEST_P(Cuda, EightBitGradientsAreAsGoodAsTheCpus) {
  if (GetParam() != at::kBFloat16) GTEST_SKIP() << "bf16 alone";
  const ModelConfig config = testing::shared_config("4-6", AnchorRule::kBefore);
  Llama cpu = testing::make_model(config, GetParam());
  Llama card(config, {}, GetParam(), at::kCUDA);
  for (size_t i = 0; i < cpu.table().tensors().size(); ++i)
    card.weights().tensor(i).copy_(cpu.weights().tensor(i));
  const DeviceBatch batch = testing::make_batch({30, 4, 17}, config.vocab_size);
  SegmentHooks hooks;
  Llama exact_model(config, {}, at::kDouble, at::kCPU);
  for (size_t i = 0; i < cpu.table().tensors().size(); ++i)
    exact_model.weights().tensor(i).copy_(cpu.weights().tensor(i));
  ParameterBuffers truth = exact_model.make_gradients(at::kDouble);
  exact_model.forward_backward(batch, 0.1, truth, false, testing::all_layers(config, Recording::kKeep),
                               hooks);
  cpu.use_fp8(true);
  card.use_fp8(true);
  for (const Recording recording : {Recording::kKeep, Recording::kRecompute}) {
    ParameterBuffers expected = cpu.make_gradients(GetParam()), found = card.make_gradients(GetParam());
    const auto policy = testing::all_layers(config, recording);
    cpu.forward_backward(batch, 0.1, expected, false, policy, hooks);
    card.forward_backward(on_card(batch), 0.1, found, false, policy, hooks);
    for (size_t i = 0; i < cpu.table().tensors().size(); ++i) {
      // A last bit of bf16 rounds to another number of 8 bits: near the truth, not to each other.
      const at::Tensor exact = truth.tensor(i);
      EXPECT_LT(relative_difference(found.tensor(i).cpu(), exact),
                1.3 * relative_difference(expected.tensor(i), exact))
          << cpu.table().tensors()[i].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Cuda, ::testing::Values(at::kDouble, at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(at::toString(info.param)); });

}  // namespace
}  // namespace satune
