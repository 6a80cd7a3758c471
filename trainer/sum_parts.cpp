#include "trainer/sum_parts.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "model/ops/cuda_stream.h"
#include "trainer/cuda_kernels.h"
#include "trainer/sum_kernels.h"

namespace satune {
namespace {

// Elements of one task.
constexpr int64_t kGrain = 16384;

template <typename Part, typename Sum>
void sum_on_cpu(const std::vector<at::Tensor>& parts, const at::Tensor& sum, bool accumulate,
                void (*kernel)(const Part* const*, int64_t, Sum*, int64_t, int64_t, bool)) {
  std::vector<const Part*> pointers;
  pointers.reserve(parts.size());
  for (const at::Tensor& part : parts) pointers.push_back(static_cast<const Part*>(part.const_data_ptr()));
  auto* out = sum.mutable_data_ptr<Sum>();
  at::parallel_for(0, sum.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernel(pointers.data(), static_cast<int64_t>(pointers.size()), out, begin, end, accumulate);
  });
}

void sum_on_card(const std::vector<at::Tensor>& parts, const at::Tensor& sum, bool accumulate) {
  std::vector<const void*> pointers;
  pointers.reserve(parts.size());
  for (const at::Tensor& part : parts) pointers.push_back(part.const_data_ptr());
  cuda::sum_ranks(cuda::element_of(parts.front()), pointers.data(), static_cast<int64_t>(pointers.size()),
                  sum.mutable_data_ptr(), sum.numel(), accumulate, cuda::current_stream(sum));
}

}  // namespace

void sum_parts(const std::vector<at::Tensor>& parts, const at::Tensor& sum, bool accumulate) {
  TORCH_CHECK(!parts.empty() && sum.is_contiguous());
  const at::ScalarType type = parts.front().scalar_type();
  for (const at::Tensor& part : parts) {
    TORCH_CHECK(part.is_contiguous() && part.numel() == sum.numel() && part.scalar_type() == type);
  }
  TORCH_CHECK(sum.scalar_type() == (type == at::kDouble ? at::kDouble : at::kFloat));
  if (cuda::on_card(sum)) return sum_on_card(parts, sum, accumulate);
  switch (type) {
    case at::kDouble:
      return sum_on_cpu(parts, sum, accumulate, sum_parts_f64);
    case at::kFloat:
      return sum_on_cpu(parts, sum, accumulate, sum_parts_f32);
    case at::kBFloat16:
      return sum_on_cpu(parts, sum, accumulate, sum_parts_bf16);
    case at::kHalf:
      return sum_on_cpu(parts, sum, accumulate, sum_parts_f16);
    default:
      TORCH_CHECK(false, "sum of ", type);
  }
}

}  // namespace satune
