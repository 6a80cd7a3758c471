// This program's other tests are those of the CPU's ops, which mean nothing here unless the kernels ran.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/ops/embedding.h"
#include "model/ops/fp8.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"
#include "model/ops/rope.h"
#include "model/ops/swiglu.h"
#include "tests/cuda_emulation/emulator.h"
#include "tests/model/eager.h"
#include "tests/model/models.h"

namespace satune {
namespace {

template <typename F>
int64_t launches(F&& call) {
  const int64_t before = emulation::traffic().launches;
  call();
  return emulation::traffic().launches - before;
}

TEST(CardOps, EveryOpLaunchesItsKernels) {
  const at::Tensor x = at::ones({6, 8}, at::kBFloat16), weight = at::ones({8}, at::kBFloat16);
  const at::Tensor d_weight = at::zeros({8}, at::kFloat), rstd = at::ones({6}, at::kFloat);
  EXPECT_EQ(launches([&] { rms_norm_forward(x, weight, 1e-5); }), 1);
  EXPECT_EQ(launches([&] { rms_norm_backward(x, x, weight, rstd, {}, {}, false); }), 1);
  EXPECT_EQ(launches([&] { rms_norm_backward(x, x, weight, rstd, x, d_weight, true); }), 2);
  EXPECT_EQ(launches([&] { swiglu_forward(x); }), 1);
  EXPECT_EQ(launches([&] { to_fp8(x, Fp8Format::kE4M3, Fp8Layout::kBoth); }), 3);
  at::Tensor largest;
  const at::Tensor act = swiglu_forward(x, &largest);
  EXPECT_EQ(launches([&] { to_fp8(act, Fp8Format::kE4M3, Fp8Layout::kBoth, largest); }), 2);
  EXPECT_EQ(launches([&] { swiglu_backward(x.narrow(1, 0, 4).contiguous(), x); }), 1);
  const at::Tensor tokens = at::tensor({3, 1, 1, 0, 2, 3}, at::kLong);
  const Targets targets{at::arange(6, at::kLong), tokens};
  const RopeTable table{at::ones({4, 2}, at::kFloat), at::zeros({4, 2}, at::kFloat)};
  EXPECT_EQ(launches([&] { rope_apply(x.view({6, 2, 4}), tokens, table, false); }), 1);
  EXPECT_EQ(launches([&] { embedding_backward(x, tokens, at::zeros({4, 8}, at::kFloat), true); }), 1);
  const at::Tensor head = at::ones({4, 8}, at::kBFloat16);
  EXPECT_EQ(launches([&] { linear_cross_entropy_forward(x, head, targets); }), 1);
  EXPECT_EQ(launches([&] { linear_cross_entropy_backward(x, head, targets, 1, {}, false); }), 1);
}

/// The layers' calls, not only the tests'.
TEST(CardOps, AModelsGradientsAreThoseOfAutograd) {
  const ModelConfig config = testing::shared_config("1-2", AnchorRule::kBefore, 3);
  Llama model = testing::make_model(config, at::kDouble);
  const DeviceBatch batch = testing::make_batch({7, 1, 9}, config.vocab_size);
  const eager::Tensors leaves = eager::leaves(model);
  const at::Tensor expected = eager::loss_sum(config, leaves, batch);
  (expected * 0.1).backward();
  ParameterBuffers gradients = model.make_gradients(at::kDouble);
  SegmentHooks hooks;
  LossSums sums;
  const int64_t count = launches([&] {
    sums = model.forward_backward(batch, 0.1, gradients, false,
                                  testing::all_layers(config, Recording::kSelective), hooks);
  });
  // Forward: two norms, RoPE in a layer that does not share, SwiGLU; norm and head. Backward: norms and
  // SwiGLU again, two launches a norm, RoPE, SwiGLU; norm and embedding.
  EXPECT_EQ(count, (3 * 3 + 1 + 1) + 1 + (3 * (3 + 4 + 1) + 1 + 2 + 1));
  EXPECT_NEAR(sums.loss.item<double>(), expected.item<double>(), 1e-10 * expected.item<double>());
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    const std::string& name = model.table().tensors()[i].name;
    EXPECT_LT(testing::relative_difference(gradients.tensor(i), leaves.at(name).grad()), 1e-10) << name;
  }
}

}  // namespace
}  // namespace satune
