#include "trainer/gradient_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "trainer/adamw_kernels.h"

namespace satune {
namespace {

constexpr int64_t kChunk = 65536;

double sum_on_cpu(const at::Tensor& values) {
  const int64_t numel = values.numel();
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  const bool half_width = values.scalar_type() == at::kBFloat16;
  const void* data = values.const_data_ptr();
  std::vector<double> sums(static_cast<size_t>(chunks));
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, count = std::min(kChunk, numel - begin);
      sums[chunk] = half_width ? sum_of_squares_bf16(static_cast<const uint16_t*>(data) + begin, count)
                               : sum_of_squares_f32(static_cast<const float*>(data) + begin, count);
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

double gradient_sum_of_squares(std::span<const at::Tensor> gradients) {
  double total = 0;
  for (const at::Tensor& values : gradients) {
    if (values.numel() == 0) continue;
    total += values.is_cpu() ? sum_on_cpu(values) : values.to(at::kDouble).square_().sum().item<double>();
  }
  return total;
}

double gradient_sum_of_squares(const ParameterBuffers& gradients) {
  std::vector<at::Tensor> flats;
  for (int i = 0; i < gradients.num_segments(); ++i) flats.push_back(gradients.flat(i));
  return gradient_sum_of_squares(flats);
}

double clip_factor(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace satune
