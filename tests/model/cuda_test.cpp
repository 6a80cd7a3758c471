// The CUDA path against the CPU path. Skipped by name where there is no card.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/llama.h"
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

TEST_P(Cuda, LossAndGradientsEqualTheCpu) {
  const ModelConfig config = testing::shared_config("4-6", AnchorRule::kBefore);
  Llama cpu = testing::make_model(config, GetParam());
  Llama card(config, {}, GetParam(), at::kCUDA);
  for (size_t i = 0; i < cpu.table().tensors().size(); ++i) {
    card.weights().tensor(i).copy_(cpu.weights().tensor(i));
  }
  const DeviceBatch batch = testing::make_batch({30, 4, 17}, config.vocab_size);
  DeviceBatch there = batch;
  there.tokens_N = batch.tokens_N.cuda();
  there.targets_N = batch.targets_N.cuda();
  there.positions_N = batch.positions_N.cuda();
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

INSTANTIATE_TEST_SUITE_P(Types, Cuda, ::testing::Values(at::kDouble, at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(at::toString(info.param)); });

}  // namespace
}  // namespace satune
