// Every op's forward and backward against torch's autograd in fp64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/ops/attention.h"
#include "model/ops/embedding.h"
#include "model/ops/fast_exp.h"
#include "model/ops/linear.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"
#include "model/ops/rope.h"
#include "model/ops/swiglu.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::relative_difference;

/// Deterministic values of order 1.
at::Tensor values(at::IntArrayRef shape, double salt, at::ScalarType type = at::kDouble) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  const at::Tensor place = at::arange(count, at::kDouble);
  return at::sin(place * 12.9898 + salt * 78.233).mul(1.7).view(shape).to(type).contiguous();
}

at::Tensor leaf(const at::Tensor& value) {
  return value.detach().clone().requires_grad_(true);
}

TEST(FastExp, WithinTwoUlpsOfTheLibrary) {
  for (double x = -87.0; x < 88.5; x += 0.00137) {
    const float in = static_cast<float>(x);
    const double expected = std::exp(static_cast<double>(in));
    EXPECT_NEAR(kernels::fast_exp(in) / expected, 1.0, 2.4e-7) << in;
  }
  EXPECT_EQ(kernels::fast_exp(0.0f), 1.0f);
  EXPECT_EQ(kernels::fast_exp(-200.0f), 0.0f);
  EXPECT_EQ(kernels::fast_exp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_TRUE(std::isinf(kernels::fast_exp(100.0f)));
  EXPECT_TRUE(std::isnan(kernels::fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(RmsNorm, AgainstAutograd) {
  const at::Tensor x = leaf(values({150, 37}, 1)), w = leaf(values({37}, 2));
  const at::Tensor d_y = values({150, 37}, 3), residual = values({150, 37}, 4);
  const at::Tensor y = x * at::rsqrt(x.square().mean(-1, true) + 1e-5) * w;
  (y * d_y).sum().backward();
  const RmsNormOut out = rms_norm_forward(x.detach(), w.detach(), 1e-5);
  EXPECT_LT(relative_difference(out.y_NC, y.detach()), 1e-13);
  at::Tensor d_w = at::full({37}, 5.0, at::kDouble);
  const at::Tensor d_x = rms_norm_backward(d_y, x.detach(), w.detach(), out.rstd_N, residual, d_w, false);
  EXPECT_LT(relative_difference(d_x, x.grad() + residual), 1e-13);
  EXPECT_LT(relative_difference(d_w, w.grad()), 1e-13);
  rms_norm_backward(d_y, x.detach(), w.detach(), out.rstd_N, {}, d_w, true);
  EXPECT_LT(relative_difference(d_w, 2 * w.grad()), 1e-13);
}

TEST(RmsNorm, RoundsBeforeTheWeightAsTransformersDoes) {
  const at::Tensor x = values({9, 64}, 1, at::kBFloat16), w = values({64}, 2, at::kBFloat16);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor expected = w * (wide * at::rsqrt(wide.square().mean(-1, true) + 1e-5)).to(at::kBFloat16);
  EXPECT_LT(relative_difference(rms_norm_forward(x, w, 1e-5).y_NC, expected), 1e-3);
}

TEST(Swiglu, AgainstAutograd) {
  const at::Tensor x = leaf(values({41, 26}, 1) * 3), d_y = values({41, 13}, 2);
  const at::Tensor y = at::silu(x.narrow(1, 0, 13)) * x.narrow(1, 13, 13);
  (y * d_y).sum().backward();
  EXPECT_LT(relative_difference(swiglu_forward(x.detach()), y.detach()), 1e-14);
  EXPECT_LT(relative_difference(swiglu_backward(d_y, x.detach()), x.grad()), 1e-14);
}

TEST(Swiglu, ExtremeGatesStayFinite) {
  const at::Tensor x = at::tensor({-1e4f, -100.f, 100.f, 1e4f, 2.f, 2.f, 2.f, 2.f}).view({1, 8});
  const at::Tensor y = swiglu_forward(x);
  EXPECT_TRUE(at::isfinite(y).all().item<bool>());
  EXPECT_EQ(y[0][3].item<float>(), 2e4f);
  EXPECT_EQ(y[0][0].item<float>(), 0.0f);
  EXPECT_TRUE(at::isfinite(swiglu_backward(at::ones({1, 4}), x)).all().item<bool>());
}

TEST(Rope, RotatesByPositionAndBack) {
  ModelConfig config = testing::small_config();
  const RopeTable table = make_rope_table(config, 50, at::kDouble, at::kCPU);
  const at::Tensor positions = at::tensor({0, 1, 2, 49, 7, 0}, at::kLong);
  const at::Tensor original = values({6, 5, 16}, 1);
  at::Tensor x = original.clone();
  rope_apply(x, positions, table, false);
  EXPECT_TRUE(at::equal(x[0], original[0]));  // position 0 is no rotation
  const double angle = static_cast<double>(static_cast<float>(49.0) * 1.0f);
  EXPECT_NEAR(
      x[3][2][0].item<double>(),
      original[3][2][0].item<double>() * std::cos(angle) - original[3][2][8].item<double>() * std::sin(angle),
      1e-14);
  rope_apply(x, positions, table, true);
  EXPECT_LT(relative_difference(x, original), 1e-14);
}

TEST(Embedding, AgainstAutogradWithRepeatedTokens) {
  const at::Tensor weight = leaf(values({11, 8}, 1)), d_y = values({9, 8}, 2);
  const at::Tensor tokens = at::tensor({3, 3, 0, 10, 3, 7, 0, 3, 1}, at::kLong);
  (weight.index_select(0, tokens) * d_y).sum().backward();
  at::Tensor d_w = at::full({11, 8}, 9.0, at::kDouble);
  embedding_backward(d_y, tokens, d_w, false);
  EXPECT_LT(relative_difference(d_w, weight.grad()), 1e-14);
  embedding_backward(d_y, tokens, d_w, true);
  EXPECT_LT(relative_difference(d_w, 2 * weight.grad()), 1e-14);
}

TEST(Linear, AgainstAutograd) {
  const at::Tensor x = leaf(values({19, 7}, 1)), w = leaf(values({5, 7}, 2)), d_y = values({19, 5}, 3);
  (at::matmul(x, w.t()) * d_y).sum().backward();
  EXPECT_LT(relative_difference(linear_backward_input(d_y, w.detach()), x.grad()), 1e-14);
  at::Tensor d_w = at::full({5, 7}, 9.0, at::kDouble);
  linear_backward_weight(d_y, x.detach(), d_w, false);
  EXPECT_LT(relative_difference(d_w, w.grad()), 1e-14);
  linear_backward_weight(d_y, x.detach(), d_w, true);
  EXPECT_LT(relative_difference(d_w, 2 * w.grad()), 1e-14);
  const at::Tensor residual = values({19, 5}, 4);
  EXPECT_LT(relative_difference(linear_residual_forward(x.detach(), w.detach(), residual),
                                residual + at::matmul(x.detach(), w.detach().t())),
            1e-14);
}

/// Lengths that exercise both ways of spreading documents over threads.
class Attention : public ::testing::TestWithParam<std::tuple<std::vector<int64_t>, AttentionKernel>> {};

TEST_P(Attention, AgreesWithMaterialisedOracleAndAutograd) {
  const auto& [lengths, kernel] = GetParam();
  std::vector<int64_t> starts{0};
  for (int64_t length : lengths) starts.push_back(starts.back() + length);
  const int64_t tokens = starts.back(), heads = 6, kv = 2, dim = 8;
  const at::Tensor q = leaf(values({tokens, heads, dim}, 1)), k = leaf(values({tokens, kv, dim}, 2)),
                   v = leaf(values({tokens, kv, dim}, 3)), d_out = values({tokens, heads, dim}, 4);
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, starts[i], starts[i + 1] - starts[i]); };
    parts.push_back(apply_probabilities(attention_probabilities(rows(q), rows(k), true), rows(v)));
  }
  const at::Tensor expected = at::cat(parts);
  (expected * d_out).sum().backward();

  // Strided views, as the fused projection gives them.
  const at::Tensor fused = at::cat({q.detach(), k.detach(), v.detach()}, 1);
  const at::Tensor q_view = fused.narrow(1, 0, heads), k_view = fused.narrow(1, heads, kv),
                   v_view = fused.narrow(1, heads + kv, kv);
  AttentionOptions options;
  options.choice.kernel = kernel;
  const AttentionOut out = attention_forward(q_view, k_view, v_view, starts, options);
  EXPECT_EQ(out.choice.kernel, kernel);
  EXPECT_LT(relative_difference(out.out_NHD, expected.detach()), 1e-13);
  at::Tensor d_fused = at::empty_like(fused);
  attention_backward(d_out, q_view, k_view, v_view, out, starts, d_fused.narrow(1, 0, heads),
                     d_fused.narrow(1, heads, kv), d_fused.narrow(1, heads + kv, kv));
  EXPECT_LT(relative_difference(d_fused.narrow(1, 0, heads), q.grad()), 1e-12);
  EXPECT_LT(relative_difference(d_fused.narrow(1, heads, kv), k.grad()), 1e-12);
  EXPECT_LT(relative_difference(d_fused.narrow(1, heads + kv, kv), v.grad()), 1e-12);
  at::Tensor d_v = at::zeros_like(v_view);
  attention_backward(d_out, q_view, k_view, v_view, out, starts, {}, {}, d_v);
  EXPECT_TRUE(at::equal(d_v, d_fused.narrow(1, heads + kv, kv)));
}

INSTANTIATE_TEST_SUITE_P(
    Documents, Attention,
    ::testing::Combine(::testing::Values(std::vector<int64_t>{29}, std::vector<int64_t>{700, 1, 40},
                                         std::vector<int64_t>(40, 7)),
                       ::testing::Values(AttentionKernel::kFlash, AttentionKernel::kEager)));

TEST(LinearCrossEntropy, AgainstAutograd) {
  const at::Tensor h = leaf(values({23, 9}, 1)), w = leaf(values({31, 9}, 2));
  at::Tensor targets = at::arange(23, at::kLong).mul(5).remainder(31);
  targets.narrow(0, 4, 6).fill_(-100);
  const Targets some = testing::targets_of(targets);
  const at::Tensor rows = some.rows_M;
  const at::Tensor logits = at::matmul(h, w.t()).index_select(0, rows);
  const at::Tensor chosen = targets.index_select(0, rows);
  const at::Tensor losses = -at::log_softmax(logits, -1).gather(1, chosen.unsqueeze(1)).squeeze(1);
  (losses.sum() * 0.3).backward();
  at::Tensor d_w = at::full({31, 9}, 2.0, at::kDouble);
  const CrossEntropyGradients out =
      linear_cross_entropy_backward(h.detach(), w.detach(), some, 0.3, d_w, false);
  EXPECT_NEAR(out.sums.loss.item<double>(), losses.sum().item<double>(), 1e-12);
  EXPECT_EQ(out.sums.correct.item<int64_t>(), logits.argmax(-1).eq(chosen).sum().item<int64_t>());
  EXPECT_LT(relative_difference(out.d_hidden_NC, h.grad()), 1e-13);
  EXPECT_LT(relative_difference(d_w, w.grad()), 1e-13);
  linear_cross_entropy_backward(h.detach(), w.detach(), some, 0.3, d_w, true);
  EXPECT_LT(relative_difference(d_w, 2 * w.grad()), 1e-13);
  at::Tensor per_target;
  const CrossEntropySums forward = linear_cross_entropy_forward(h.detach(), w.detach(), some, &per_target);
  EXPECT_EQ(forward.loss.item<double>(), out.sums.loss.item<double>());
  EXPECT_LT(relative_difference(per_target, losses.detach()), 1e-13);
  const at::Tensor per_row = losses_by_row(per_target, some, 23);
  EXPECT_TRUE(at::equal(per_row.index_select(0, rows), per_target));
  EXPECT_EQ(per_row.narrow(0, 4, 6).abs().sum().item<double>(), 0.0);
  EXPECT_EQ(linear_cross_entropy_forward(h.detach(), w.detach(), {}, &per_target).loss.item<double>(), 0.0);
  EXPECT_TRUE(at::equal(losses_by_row(per_target, {}, 3), at::zeros({3}, at::kDouble)));
}

TEST(LinearCrossEntropy, ChunksAreLargeEnoughForTheProductsAndBounded) {
  EXPECT_EQ(cross_entropy_chunk_rows(1000, false), 4194);   // 16 MiB
  EXPECT_EQ(cross_entropy_chunk_rows(32000, false), 512);   // 62 MiB
  EXPECT_EQ(cross_entropy_chunk_rows(1000000, false), 67);  // 256 MiB
  EXPECT_EQ(cross_entropy_chunk_rows(128256, true), 523);   // 256 MiB
  EXPECT_EQ(cross_entropy_chunk_rows(1 << 30, true), 1);
}

TEST(LinearCrossEntropy, SeveralChunksSumInFullPrecision) {
  // 70,000 words x 1,000 rows: two chunks; the gradient buffer is bf16.
  const at::Tensor h = values({1000, 4}, 1, at::kBFloat16), w = values({70000, 4}, 2, at::kBFloat16);
  const Targets targets{at::arange(1000, at::kLong), at::arange(1000, at::kLong)};
  at::Tensor narrow = at::zeros({70000, 4}, at::kBFloat16), wide = at::zeros({70000, 4}, at::kFloat);
  linear_cross_entropy_backward(h, w, targets, 1.0, narrow, false);
  linear_cross_entropy_backward(h, w, targets, 1.0, wide, false);
  EXPECT_TRUE(at::equal(narrow, wide.to(at::kBFloat16)));
}

TEST(LinearCrossEntropy, NonFiniteHiddenStatesReachTheLoss) {
  at::Tensor h = values({3, 4}, 1, at::kFloat);
  h[1][2] = std::numeric_limits<float>::quiet_NaN();
  const auto sums = linear_cross_entropy_forward(
      h, values({20, 4}, 2, at::kFloat), {at::arange(3, at::kLong), at::tensor({1, 2, 3}, at::kLong)});
  EXPECT_TRUE(std::isnan(sums.loss.item<double>()));
}

}  // namespace
}  // namespace satune
