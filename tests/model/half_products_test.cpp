// 16-bit projections and attention on the CPU: sums in fp32, one rounding, whichever way the CPU takes.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "model/ops/attention.h"
#include "model/ops/linear.h"
#include "model/ops/linear_fp32.h"
#include "model/ops/product_type.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::relative_difference;

/// Sizes above one tile in tokens and in outputs.
constexpr int64_t kTokens = 1030, kInputs = 1024, kOutputs = 2100;

at::Tensor noise(at::IntArrayRef shape, int64_t seed, at::ScalarType type) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::kFloat).to(type);
}

class LinearFp32 : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  /// Half a unit in the last place, and the error of an fp32 sum of a thousand terms of order 1.
  void expect_rounded_once(const at::Tensor& result, const at::Tensor& exact) const {
    EXPECT_EQ(result.scalar_type(), GetParam());
    const double half_ulp = GetParam() == at::kBFloat16 ? 0x1p-8 : 0x1p-11;
    EXPECT_TRUE(at::allclose(result.to(at::kDouble), exact, half_ulp, 1e-3));
  }
  at::Tensor x = noise({kTokens, kInputs}, 1, GetParam()), w = noise({kOutputs, kInputs}, 2, GetParam());
  /// As a fused projection's backward passes it: columns of a wider matrix.
  at::Tensor d_y = noise({kTokens, kOutputs + 30}, 3, GetParam()).narrow(1, 17, kOutputs);
  at::Tensor x64 = x.to(at::kDouble), w64 = w.to(at::kDouble), d_y64 = d_y.to(at::kDouble);
};

TEST_P(LinearFp32, ForwardRoundsTheSumOnce) {
  const at::Tensor exact = at::mm(x64, w64.t());
  expect_rounded_once(linear_fp32_forward(x, w, {}), exact);
  const at::Tensor residual = noise({kTokens, kOutputs}, 4, GetParam()) * 8;
  expect_rounded_once(linear_fp32_forward(x, w, residual), exact + residual.to(at::kDouble));
}

TEST_P(LinearFp32, InputGradientRoundsTheSumOnce) {
  expect_rounded_once(linear_fp32_backward_input(d_y, w), at::mm(d_y64, w64));
}

TEST_P(LinearFp32, WeightGradientRoundsOnceAndStaysWideInAWideBuffer) {
  const at::Tensor exact = at::mm(d_y64.t(), x64);
  at::Tensor narrow = noise({kOutputs, kInputs}, 5, GetParam());
  const at::Tensor before = narrow.to(at::kDouble);
  linear_fp32_backward_weight(d_y, x, narrow, true);
  expect_rounded_once(narrow, before + exact);
  linear_fp32_backward_weight(d_y, x, narrow, false);
  expect_rounded_once(narrow, exact);
  at::Tensor wide = at::full({kOutputs, kInputs}, std::numeric_limits<float>::quiet_NaN(), at::kFloat);
  linear_fp32_backward_weight(d_y, x, wide, false);
  EXPECT_LT(relative_difference(wide, exact), 1e-6);
  linear_fp32_backward_weight(d_y, x, wide, true);
  EXPECT_LT(relative_difference(wide, 2 * exact), 1e-6);
}

/// Bytes of tensors that this thread has made and not freed, and their most.
class TensorBytes final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now_ += bytes;
    most_ = std::max(most_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t most() const { return most_; }

 private:
  int64_t now_ = 0, most_ = 0;
};

// What trainer/activations.cpp plans by.
TEST_P(LinearFp32, ScratchIsTheTile) {
  for (const int64_t inputs : {48, 600, 40000}) {
    const Fp32Tile tile(kTokens, 5000, inputs);
    const at::Tensor wide_x = noise({kTokens, inputs}, 1, GetParam());
    const at::Tensor wide_d_y = noise({kTokens, 5000}, 3, GetParam());
    for (const bool narrow : {false, true}) {
      at::Tensor gradient = at::empty({5000, inputs}, narrow ? GetParam() : at::kFloat);
      const auto bytes = std::make_shared<TensorBytes>();
      {
        const c10::DebugInfoGuard watch(c10::DebugInfoKind::PROFILER_STATE, bytes);
        linear_fp32_backward_weight(wide_d_y, wide_x, gradient, false);
      }
      const int64_t sides = tile.tokens * (tile.outputs + tile.inputs);
      EXPECT_EQ(bytes->most(), 4 * (sides + (narrow ? tile.outputs * tile.inputs : 0)))
          << inputs << " inputs, " << (narrow ? "rounded" : "fp32") << " gradient";
    }
  }
}

TEST_P(LinearFp32, IsTakenWhereTheCpuHasNoFastProducts) {
  const bool native = cpu_product_type(GetParam()) == GetParam();
  EXPECT_TRUE(at::equal(linear_forward(x, w), native ? at::mm(x, w.t()) : linear_fp32_forward(x, w, {})));
  EXPECT_TRUE(
      at::equal(linear_backward_input(d_y, w), native ? at::mm(d_y, w) : linear_fp32_backward_input(d_y, w)));
}

TEST_P(LinearFp32, OneTokenAgreesWithMany) {
  EXPECT_LT(relative_difference(linear_forward(x.narrow(0, 5, 1), w), linear_forward(x, w).narrow(0, 5, 1)),
            1e-3);
}

TEST(CpuProductType, WideTypesStay) {
  EXPECT_EQ(cpu_product_type(at::kFloat), at::kFloat);
  EXPECT_EQ(cpu_product_type(at::kDouble), at::kDouble);
}

TEST_P(LinearFp32, AttentionFollowsItsFp64Self) {
  const std::vector<int64_t> starts{0, 70, 100};
  const auto part = [&](int64_t heads, int64_t seed) { return noise({100, heads, 32}, seed, GetParam()); };
  const at::Tensor q = part(4, 1), k = part(2, 2), v = part(2, 3), d_out = part(4, 4);
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const auto run = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& d) {
    const AttentionOut out = attention_forward(q, k, v, starts);
    std::vector<at::Tensor> results{out.out_NHD, at::empty_like(q), at::empty_like(k), at::empty_like(v)};
    attention_backward(d, q, k, v, out, starts, results[1], results[2], results[3]);
    return results;
  };
  const std::vector<at::Tensor> half = run(q, k, v, d_out),
                                exact = run(wide(q), wide(k), wide(v), wide(d_out));
  for (size_t i = 0; i < half.size(); ++i) {
    EXPECT_EQ(half[i].scalar_type(), GetParam());
    EXPECT_LT(relative_difference(half[i], exact[i]), 1e-2) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LinearFp32, ::testing::Values(at::kBFloat16, at::kHalf),
                         [](const auto& info) { return std::string(toString(info.param)); });

}  // namespace
}  // namespace satune
