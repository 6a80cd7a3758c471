#include "model/ops/cuda_kernels.h"
#include "tests/kernels/kernel_fixtures.h"

namespace satune {
namespace {

using namespace testing;

constexpr double kEps = 1e-5;

template <typename T>
class RmsNormKernel : public ::testing::Test {};
TYPED_TEST_SUITE(RmsNormKernel, AllElements, ElementName);

template <typename T>
struct Inputs {
  size_t rows, width;
  std::vector<double> x, weight, d_y, residual;

  Inputs(size_t rows_, size_t width_) : rows(rows_), width(width_) {
    x = wave(rows * width, 1);
    weight = wave(width, 2);
    d_y = wave(rows * width, 3);
    residual = wave(rows * width, 4);
    for (auto* values : {&x, &weight, &d_y, &residual}) {
      for (double& value : *values) value = rounded<T>(value);
    }
  }
  double rstd(size_t row) const {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[row * width + i] * x[row * width + i];
    return 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
  }
};

// A part of a pack; a pack; a warp and a bit; two packs a thread; wider than the backward keeps in registers.
constexpr size_t kWidths[] = {3, 8, 40, 264, 512};

TYPED_TEST(RmsNormKernel, Forward) {
  using T = TypeParam;
  for (const size_t width : kWidths) {
    const Inputs<T> in(5, width);
    const auto found = in_any_order(3, [&](size_t shifts) {
      Array<T> x(in.x, shift_of(shifts, 0)), weight(in.weight, shift_of(shifts, 1));
      Array<T> y(std::vector<double>(in.x.size()), shift_of(shifts, 2));
      Array<cuda::wide_t<T>> rstd(std::vector<double>(in.rows));
      auto parts = unwritten_parts(static_cast<int64_t>(in.rows));
      cuda::rms_norm_forward(kElement<T>, x.data(), weight.data(), y.data(), rstd.data(), wanted<T>(parts),
                             static_cast<int64_t>(in.rows), static_cast<int64_t>(width), kEps, nullptr);
      expect_largest<T>(parts, y.values());
      std::vector<double> all = y.values();
      append(all, rstd.values());
      return all;
    });
    std::vector<double> y, rstd;
    for (size_t row = 0; row < in.rows; ++row) {
      rstd.push_back(in.rstd(row));
      for (size_t i = 0; i < width; ++i) y.push_back(in.x[row * width + i] * rstd[row] * in.weight[i]);
    }
    expect_close<T>(part(found, 0, y.size()), y, "y", 2);  // rounded twice
    expect_close<cuda::wide_t<T>>(part(found, y.size(), in.rows), rstd, "rstd");
  }
}

struct Gradients {
  std::vector<double> d_x, d_weight;
};

template <typename T>
Gradients oracle(const Inputs<T>& in, bool with_residual) {
  Gradients gradients{{}, std::vector<double>(in.width)};
  for (size_t row = 0; row < in.rows; ++row) {
    const double *x = &in.x[row * in.width], *d = &in.d_y[row * in.width];
    const double rstd = in.rstd(row);
    double mean = 0;
    for (size_t i = 0; i < in.width; ++i) mean += d[i] * in.weight[i] * x[i] * rstd;
    mean /= static_cast<double>(in.width);
    for (size_t i = 0; i < in.width; ++i) {
      const double gradient = (d[i] * in.weight[i] - x[i] * rstd * mean) * rstd;
      gradients.d_x.push_back(gradient + (with_residual ? in.residual[row * in.width + i] : 0));
      gradients.d_weight[i] += d[i] * rounded<T>(x[i] * rstd);
    }
  }
  return gradients;
}

/// d_x, then d_weight of element type G that was `before`.
template <typename T, typename G>
std::vector<double> run_backward(const Inputs<T>& in, bool with_residual, bool accumulate, double before,
                                 size_t shifts) {
  using A = cuda::wide_t<T>;
  const auto rows = static_cast<int64_t>(in.rows);
  std::vector<double> rstd(in.rows);
  for (size_t row = 0; row < in.rows; ++row) rstd[row] = in.rstd(row);
  Array<T> d_y(in.d_y, shift_of(shifts, 0)), x(in.x, shift_of(shifts, 1));
  Array<T> weight(in.weight, shift_of(shifts, 2)), residual(in.residual, shift_of(shifts, 3));
  Array<T> d_x(std::vector<double>(in.x.size()), shift_of(shifts, 4));
  const auto partial_rows = static_cast<size_t>(cuda::rms_norm_partial_rows(rows));
  Array<A> rstds(rstd), partial(std::vector<double>(partial_rows * in.width, 99), shift_of(shifts, 5));
  Array<G> d_weight(std::vector<double>(in.width, before));
  auto parts = unwritten_parts(cuda::rms_norm_partial_rows(rows));
  cuda::rms_norm_backward(kElement<T>, d_y.data(), x.data(), weight.data(), rstds.data(),
                          with_residual ? residual.data() : nullptr, d_x.data(), wanted<T>(parts),
                          partial.data(), {kElement<G>, d_weight.data(), accumulate}, rows,
                          static_cast<int64_t>(in.width), nullptr);
  if (rows > 0) expect_largest<T>(parts, d_x.values());
  std::vector<double> all = d_x.values();
  append(all, d_weight.values());
  return all;
}

TYPED_TEST(RmsNormKernel, Backward) {
  using T = TypeParam;
  for (const size_t width : kWidths) {
    const Inputs<T> in(5, width);
    for (const bool with_residual : {false, true}) {
      const Gradients expected = oracle(in, with_residual);
      const auto found = in_any_order(
          6, [&](size_t shifts) { return run_backward<T, T>(in, with_residual, false, 7, shifts); });
      expect_close<T>(part(found, 0, in.x.size()), expected.d_x, "d_x");
      expect_close<T>(part(found, in.x.size(), width), expected.d_weight, "d_weight");
    }
  }
}

TYPED_TEST(RmsNormKernel, GradientOfTheWeightOverMoreRowsThanBlocks) {
  using T = TypeParam;
  const Inputs<T> in(1030, 8);  // some blocks have three
  const Gradients expected = oracle(in, true);
  const auto found = run_backward<T, T>(in, true, false, 7, 0);
  expect_close<T>(part(found, 0, in.x.size()), expected.d_x, "d_x");
  expect_close<T>(part(found, in.x.size(), in.width), expected.d_weight, "d_weight");
  // Into fp32 the sum is not rounded to T, and with `accumulate` it is added.
  using A = cuda::wide_t<T>;
  const auto wide = run_backward<T, A>(in, true, true, 0.5, 0);
  std::vector<double> sum = expected.d_weight;
  for (double& value : sum) value += 0.5;
  expect_close<A>(part(wide, in.x.size(), in.width), sum, "d_weight in fp32");
}

TEST(RmsNormKernels, TheRowsOfABlockKeepApart) {
  const Inputs<double> in(1030, 130);  // several rows a block, two warps
  in_any_order(0, [&](size_t) { return run_backward<double, double>(in, true, false, 7, 0); });
}

TYPED_TEST(RmsNormKernel, WithoutRows) {
  using T = TypeParam;
  const Inputs<T> in(0, 8);
  EXPECT_EQ((run_backward<T, T>(in, false, false, 7, 0)), std::vector<double>(8, 0));
  EXPECT_EQ((run_backward<T, T>(in, false, true, 7, 0)), std::vector<double>(8, 7));
}

}  // namespace
}  // namespace satune
