// AdamW, the norm and the sum over ranks: the first and the last to the bits of the CPU's loops.
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/kernels/kernel_fixtures.h"
#include "trainer/cuda_kernels.h"

namespace satune {
namespace {

using namespace testing;

AdamWCoefficients coefficients(bool decay) {
  AdamWCoefficients c{};
  c.gradient_scale = 0.37F;
  c.beta1 = 0.9F;
  c.beta2 = 0.999F;
  c.one_minus_beta1 = 0.1F;
  c.one_minus_beta2 = 0.001F;
  c.decay = decay ? 0.9999F : 1.0F;
  c.step_size = 0.013F;
  c.bias_correction2_sqrt = 0.0547F;
  c.epsilon = 1e-8F;
  return c;
}

TEST(UpdateDecision, IsThatOfTheHost) {
  // Two micro-batches of three ranks, of which two share a model.
  const std::vector<double> usual = {4, 10, 3, 12, 1, 5, 9, 2, 8, 0, 100, 7, 4, 7, 2};
  const auto step_of = [](const std::vector<double>& all) {
    return StepNumbers{all.data(), 3, 5, 2, 20, 512, 1};
  };
  const auto decided = [&](const std::vector<double>& all) {
    const StepNumbers step = step_of(all);
    float scale = -1;
    cuda::decide_update(step, &scale, nullptr);
    const StepSums sums = sum_up(step);
    const float expected = gradient_scale(sums, step);
    EXPECT_EQ(std::memcmp(&scale, &expected, sizeof(scale)), 0) << scale << " " << expected;
    EXPECT_EQ(std::isnan(scale), !is_finite(sums, step));
    return scale;
  };
  const StepSums sums = sum_up(step_of(usual));
  EXPECT_EQ(sums.squares, 9);  // not the replica's
  EXPECT_EQ(sums.loss, 10 + 9 + 7 + 12 + 8 + 7);
  EXPECT_EQ(sums.correct, 3 + 2 + 4 + 1 + 0 + 2);
  EXPECT_EQ(decided(usual), 1.0F / 512) << "a norm of 3 / 512 is not clipped";
  std::vector<double> steep = usual;
  steep[0] = 1e10;
  EXPECT_LT(decided(steep), 1.0F / 512);
  constexpr double kBad[] = {std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity()};
  for (const double bad : kBad) {
    for (const size_t place : {0, 5, 1, 8, 13}) {  // norms and losses
      std::vector<double> broken = usual;
      broken[place] = bad;
      EXPECT_TRUE(std::isnan(decided(broken))) << place;
    }
  }
}

std::vector<double> squared(std::vector<double> values) {
  for (double& value : values) value *= value;
  return values;
}

/// Master, moments and, where they are apart, weights after an update. W float: the master is the weights.
template <typename G, typename W>
std::vector<double> update_on_card(size_t n, size_t shifts, bool decay) {
  Array<float> p(wave(n, 1), shift_of(shifts, 0)), m(wave(n, 2, 1e-3), shift_of(shifts, 1));
  Array<float> v(squared(wave(n, 3, 1e-3)), shift_of(shifts, 2));
  Array<G> g(wave(n, 4, 0.01), shift_of(shifts, 3));
  Array<W> weights(std::vector<double>(n, 5), shift_of(shifts, 4));
  const bool apart = sizeof(W) < sizeof(float);
  cuda::adamw_update(
      {p.data(), m.data(), v.data(), g.data(), kElement<G>, apart ? weights.data() : nullptr, kElement<W>},
      static_cast<int64_t>(n), coefficients(decay), nullptr);
  std::vector<double> all = p.values();
  append(all, m.values());
  append(all, v.values());
  if (apart) append(all, weights.values());
  return all;
}

template <typename G, typename W>
std::vector<double> update_on_cpu(size_t n, bool decay) {
  Array<float> p(wave(n, 1)), m(wave(n, 2, 1e-3)), v(squared(wave(n, 3, 1e-3)));
  Array<G> g(wave(n, 4, 0.01));
  const auto count = static_cast<int64_t>(n);
  if constexpr (std::is_same_v<G, __nv_bfloat16>) {
    adamw_update_bf16(p.data(), m.data(), v.data(), reinterpret_cast<const uint16_t*>(g.data()), count,
                      coefficients(decay));
  } else {
    std::vector<float> wide;
    for (const double value : g.values()) wide.push_back(static_cast<float>(value));
    adamw_update_f32(p.data(), m.data(), v.data(), wide.data(), count, coefficients(decay));
  }
  std::vector<double> all = p.values();
  append(all, m.values());
  append(all, v.values());
  if constexpr (std::is_same_v<W, __nv_bfloat16>) {
    std::vector<uint16_t> bits(n);
    round_to_bf16(p.data(), bits.data(), count);
    for (const uint16_t value : bits)
      all.push_back(static_cast<double>(__bfloat162float(__ushort_as_bfloat16(value))));
  } else if constexpr (std::is_same_v<W, __half>) {
    for (const double value : p.values()) all.push_back(rounded<__half>(value));
  }
  return all;
}

template <typename G, typename W>
void expect_the_bits_of_the_cpu() {
  for (const size_t n : {1, 4, 1023, 2501}) {
    for (const bool decay : {false, true}) {
      const auto expected = update_on_cpu<G, W>(n, decay);
      const auto found =
          in_any_order(5, [&](size_t shifts) { return update_on_card<G, W>(n, shifts, decay); });
      EXPECT_TRUE(same_bits(found, expected)) << n;
    }
  }
}

TEST(AdamWKernel, GivesTheBitsOfTheCpu) {
  for_gradients_and_weights([]<typename G, typename W>() { expect_the_bits_of_the_cpu<G, W>(); });
}

TEST(AdamWKernel, RefusesTypesThatItWasNotBuiltFor) {
  EXPECT_THROW((update_on_card<__half, __nv_bfloat16>(4, 0, true)), std::runtime_error);
  EXPECT_THROW((update_on_card<__half, float>(4, 0, true)), std::runtime_error);
}

template <typename T>
class NormKernel : public ::testing::Test {};
TYPED_TEST_SUITE(NormKernel, AllElements, ElementName);

template <typename T>
double sum_of_squares(const std::vector<double>& values, size_t shift) {
  Array<T> array(values, shift);
  const auto n = static_cast<int64_t>(values.size()), count = cuda::sum_of_squares_parts(n);
  Array<double> parts(std::vector<double>(static_cast<size_t>(count), -1)), sum({-1});
  cuda::sum_of_squares(kElement<T>, array.data(), n, parts.data(), nullptr);
  cuda::sum_of_parts(parts.data(), count, sum.data(), nullptr);
  return sum[0];
}

TYPED_TEST(NormKernel, SumsSquaresInDoublePrecisionInOneOrder) {
  using T = TypeParam;
  for (const size_t n : {0, 1, 777, 32768, 70001}) {
    // Sizes far apart, so that a sum in fp32 would lose the small ones.
    std::vector<double> values = wave(n, 1, 100);
    for (size_t i = 0; i < n; ++i) values[i] = rounded<T>(i % 3 == 0 ? values[i] : values[i] * 1e-3);
    long double expected = 0;
    for (const double value : values) expected += static_cast<long double>(value) * value;
    const auto found =
        in_any_order(1, [&](size_t shift) { return std::vector{sum_of_squares<T>(values, shift)}; });
    EXPECT_NEAR(found[0], static_cast<double>(expected), 1e-14 * static_cast<double>(expected)) << n;
  }
}

TYPED_TEST(NormKernel, WhatIsNotFiniteShowsAndWhatIsLargeDoesNotOverflow) {
  using T = TypeParam;
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
    std::vector<double> values = wave(1000, 1);
    values[999] = bad;
    EXPECT_FALSE(std::isfinite(sum_of_squares<T>(values, 0)));
  }
  const double large = rounded<T>(std::is_same_v<T, __half> ? 6e4 : 3e38);
  EXPECT_DOUBLE_EQ(sum_of_squares<T>({large, large}, 0), 2 * large * large);
}

template <typename T>
class RankSumKernel : public ::testing::Test {};
TYPED_TEST_SUITE(RankSumKernel, AllElements, ElementName);

TYPED_TEST(RankSumKernel, AddsFromLeftToRight) {
  using T = TypeParam;
  using A = cuda::wide_t<T>;
  constexpr size_t kElements = 1030;
  for (const size_t ranks : {1, 3, 37}) {  // more than one launch takes
    for (const bool accumulate : {false, true}) {
      std::vector<A> expected(kElements);
      std::vector<std::vector<double>> parts;
      const auto before = wave(kElements, 0.5);
      for (size_t i = 0; i < kElements; ++i) expected[i] = accumulate ? static_cast<A>(before[i]) : A(0);
      for (size_t rank = 0; rank < ranks; ++rank) {
        parts.push_back(wave(kElements, static_cast<double>(rank)));
        for (size_t i = 0; i < kElements; ++i) {
          const A addend = static_cast<A>(rounded<T>(parts[rank][i]));
          expected[i] = rank == 0 && !accumulate ? addend : expected[i] + addend;
        }
      }
      for (const size_t shifts : {0, 1, 2}) {
        std::vector<std::unique_ptr<Array<T>>> arrays;
        std::vector<const void*> pointers;
        for (const auto& values : parts) {
          arrays.push_back(std::make_unique<Array<T>>(values, arrays.empty() ? shift_of(shifts, 0) : 0));
          pointers.push_back(arrays.back()->data());
        }
        Array<A> sum(before, shift_of(shifts, 1));
        cuda::sum_ranks(kElement<T>, pointers.data(), static_cast<int64_t>(ranks), sum.data(), kElements,
                        accumulate, nullptr);
        EXPECT_EQ(sum.values(), std::vector<double>(expected.begin(), expected.end())) << ranks << " ranks";
      }
    }
  }
}

}  // namespace
}  // namespace satune
