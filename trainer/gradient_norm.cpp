#include "trainer/gradient_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "model/ops/cuda_stream.h"
#include "trainer/adamw_kernels.h"
#include "trainer/cuda_kernels.h"

namespace satune {
namespace {

constexpr int64_t kNormChunk = 65536;

double sum_on_cpu(const at::Tensor& values) {
  const int64_t numel = values.numel();
  const int64_t chunks = (numel + kNormChunk - 1) / kNormChunk;
  const bool half_width = values.scalar_type() == at::kBFloat16;
  const void* data = values.const_data_ptr();
  std::vector<double> sums(static_cast<size_t>(chunks));
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kNormChunk, count = std::min(kNormChunk, numel - begin);
      sums[chunk] = half_width ? sum_of_squares_bf16(static_cast<const uint16_t*>(data) + begin, count)
                               : sum_of_squares_f32(static_cast<const float*>(data) + begin, count);
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

at::Tensor sum_on_card(std::span<const at::Tensor> gradients) {
  int64_t count = 0;
  for (const at::Tensor& values : gradients) count += cuda::sum_of_squares_parts(values.numel());
  const at::TensorOptions options = gradients[0].options().dtype(at::kDouble);
  const at::Tensor parts = at::empty({count}, options), sum = at::empty({}, options);
  const cuda::Stream stream = cuda::current_stream(sum);
  auto* next = parts.mutable_data_ptr<double>();
  for (const at::Tensor& values : gradients) {
    TORCH_CHECK(values.is_contiguous() && values.device() == sum.device());
    cuda::sum_of_squares(cuda::element_of(values), values.const_data_ptr(), values.numel(), next, stream);
    next += cuda::sum_of_squares_parts(values.numel());
  }
  cuda::sum_of_parts(parts.const_data_ptr<double>(), count, sum.mutable_data_ptr<double>(), stream);
  return sum;
}

}  // namespace

at::Tensor sum_of_squares(std::span<const at::Tensor> gradients) {
  if (gradients.empty()) return at::zeros({}, at::kDouble);
  if (cuda::on_card(gradients[0])) return sum_on_card(gradients);
  double total = 0;
  for (const at::Tensor& values : gradients) {
    if (values.numel() > 0) total += sum_on_cpu(values);
  }
  return at::scalar_tensor(total, at::kDouble);
}

double gradient_sum_of_squares(std::span<const at::Tensor> gradients) {
  return sum_of_squares(gradients).item<double>();
}

double gradient_sum_of_squares(const ParameterBuffers& gradients) {
  std::vector<at::Tensor> flats;
  flats.reserve(gradients.num_segments());
  for (int i = 0; i < gradients.num_segments(); ++i) flats.push_back(gradients.flat(i));
  return gradient_sum_of_squares(flats);
}

}  // namespace satune
