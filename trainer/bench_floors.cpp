#include "trainer/bench_floors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "trainer/percentile.h"
#include "trainer/step_recorder.h"

namespace satune {
namespace {

constexpr int kGoes = 5;  // after one to warm up

/// Of a product's sides and of what is copied. On the CPU a product of 0.1 s on two cores, and more than any
/// cache holds.
constexpr int64_t kSideOnCpu = 1536, kSideOnCard = 8192, kSideOfProbe = 192;
constexpr int64_t kCopyBytesOnCpu = int64_t{192} << 20, kCopyBytesOnCard = int64_t{1} << 30;

double median_seconds(const at::Device& device, const std::function<void()>& work) {
  StepRecorder recorder(device);
  for (int i = 0; i <= kGoes; ++i) {
    const TracedPart part(&recorder, "go");
    work();
  }
  std::vector<double> seconds;
  for (const RecordedPart& part : recorder.take().parts) seconds.push_back(part.device.length() / 1e6);
  seconds.erase(seconds.begin());
  return percentile(std::move(seconds), 0.5);
}

double gemm_rate(const at::Device& device, at::ScalarType type, int64_t side) {
  const at::Tensor a = at::full({side, side}, 0.01, at::TensorOptions(device).dtype(type));
  const at::Tensor b = at::full({side, side}, 0.01, a.options());
  at::Tensor out = at::empty({side, side}, a.options());
  const auto n = static_cast<double>(side);
  return 2 * n * n * n / median_seconds(device, [&] { at::matmul_out(out, a, b); });
}

double gemm8_rate(const at::Device& device, int64_t side) {
  const at::Tensor a =
      at::full({side, side}, 0.5, at::TensorOptions(device).dtype(at::kFloat)).to(at::kFloat8_e4m3fn);
  const at::Tensor one = at::ones({}, at::TensorOptions(device).dtype(at::kFloat));
  at::Tensor out = at::empty({side, side}, at::TensorOptions(device).dtype(at::kBFloat16));
  const auto n = static_cast<double>(side);
  return 2 * n * n * n / median_seconds(device, [&] {
           at::_scaled_mm_out(out, a, a.t(), one, one, {}, {}, at::kBFloat16, /*use_fast_accum=*/true);
         });
}

double copy_rate(const at::Device& device) {
  const int64_t bytes = device.is_cpu() ? kCopyBytesOnCpu : kCopyBytesOnCard;
  const at::Tensor from = at::zeros({bytes / 4}, at::TensorOptions(device).dtype(at::kFloat));
  const at::Tensor to = at::zeros_like(from);
  return 2 * static_cast<double>(bytes) / median_seconds(device, [&] { to.copy_(from); });
}

}  // namespace

double Floors::seconds(double flops, double bytes, double flops8) const {
  const double fast = gemm8_flops > 0 ? flops8 : 0;
  double products = gemm_flops > 0 ? (flops - fast) / gemm_flops : 0;
  if (fast > 0) products += fast / gemm8_flops;
  return std::max(products, copy_bytes > 0 ? bytes / copy_bytes : 0);
}

Floors measure_floors(const at::Device& device, at::ScalarType type, bool fp8) {
  if (!device.is_cpu()) {
    return {gemm_rate(device, type, kSideOnCard), copy_rate(device),
            fp8 ? gemm8_rate(device, kSideOnCard) : 0};
  }
  Floors floors{gemm_rate(device, at::kFloat, kSideOnCpu), copy_rate(device)};
  // Without instructions for it a large 16-bit product takes most of a minute.
  if (type != at::kFloat && gemm_rate(device, type, kSideOfProbe) > floors.gemm_flops / 4)
    floors.gemm_flops = std::max(floors.gemm_flops, gemm_rate(device, type, kSideOnCpu));
  return floors;
}

Floors better_of(const Floors& a, const Floors& b) {
  return {std::max(a.gemm_flops, b.gemm_flops), std::max(a.copy_bytes, b.copy_bytes),
          std::max(a.gemm8_flops, b.gemm8_flops)};
}

}  // namespace satune
