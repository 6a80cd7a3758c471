#include "trainer/fp8_trial.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "data/files/error.h"
#include "model/ops/fp8.h"

namespace satune {
namespace {

// Tokens that are no multiple of 16, as batches have them.
constexpr int64_t kTokens = 100, kInputs = 256, kOutputs = 128;
// Results in bf16, whose rounding leaves 2e-3 at most; fast accumulation on Hopper drops bits of sums, too.
constexpr double kTolerance = 1e-2;
constexpr double kMostOfRounding = 0.1;

at::Tensor from_fp8(const at::Tensor& stored, const Fp8Matrix& matrix) {
  return stored.to(at::kFloat).to(at::kDouble) * matrix.scale;
}

double difference(const at::Tensor& found, const at::Tensor& expected) {
  return ((found.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

}  // namespace

double fp8_error(at::Device device) {
  at::Generator random = at::detail::createCPUGenerator(/*seed=*/42);
  const auto numbers = [&](int64_t rows, int64_t columns) {
    return at::randn({rows, columns}, random, at::kFloat).to(device, at::kBFloat16);
  };
  const at::Tensor x16 = numbers(kTokens, kInputs), weight16 = numbers(kOutputs, kInputs),
                   d_y16 = numbers(kTokens, kOutputs);
  const Fp8Matrix x = to_fp8(x16, Fp8Format::kE4M3, Fp8Layout::kBoth);
  const Fp8Matrix weight = to_fp8(weight16, Fp8Format::kE4M3, Fp8Layout::kBoth);
  const Fp8Matrix d_y = to_fp8(d_y16, Fp8Format::kE5M2, Fp8Layout::kBoth);
  const at::Tensor x64 = from_fp8(x.rows_RC, x), weight64 = from_fp8(weight.rows_RC, weight),
                   d_y64 = from_fp8(d_y.rows_RC, d_y);
  const at::Tensor d_weight64 = at::mm(d_y64.t(), x64);
  // Two bits of mantissa leave 6 % at most, three 3 %.
  for (const auto& [stored, given] :
       {std::pair(x64, x16), std::pair(weight64, weight16), std::pair(d_y64, d_y16)}) {
    const double error = difference(stored, given.to(at::kDouble));
    if (!(error <= kMostOfRounding)) return error;
  }
  std::vector<double> errors = {
      difference(fp8_forward(x, weight, at::kBFloat16), at::mm(x64, weight64.t())),
      difference(fp8_backward_input(d_y, weight, at::kBFloat16), at::mm(d_y64, weight64))};
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    const at::Tensor d_weight = at::empty({kOutputs, kInputs}, weight.scale.options().dtype(type));
    fp8_backward_weight(d_y, x, d_weight, /*accumulate=*/false);
    errors.push_back(difference(d_weight, d_weight64));
    fp8_backward_weight(d_y, x, d_weight, /*accumulate=*/true);
    errors.push_back(difference(d_weight, 2 * d_weight64));
  }
  double largest = 0;
  for (const double error : errors) largest = error <= largest ? largest : error;  // NaN stays
  return largest;
}

void check_fp8(const Settings& settings, at::Device device, const std::function<double(at::Device)>& error) {
  if (!settings.fp8) return;
  std::string fault;
  try {
    const double found = error(device);
    if (found <= kTolerance) return;
    fault = fmt::format("results {:.1e} off the reference, {:.0e} allowed", found, kTolerance);
  } catch (const std::exception& failure) {
    const std::string_view what = failure.what();
    fault = what.substr(0, what.find('\n'));
  }
  throw EnvironmentError(
      fmt::format("fp8: found that 8-bit products fail their trial on {} ({}), expected a card of compute "
                  "capability 8.9 or newer, or the CPU",
                  device.str(), fault));
}

}  // namespace satune
