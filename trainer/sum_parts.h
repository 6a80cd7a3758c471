// The sum that ends a reduce-scatter: the same on every device and for every group.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace satune {

/// sum = parts[0] + parts[1] + ..., from left to right in sum's type; with `accumulate` the first addend is
/// what stands in `sum`. So n ranks that accumulate k batches add in the order of one rank that accumulates
/// n * k, and the bits depend on the addends alone. Contiguous 1-D tensors of one device and size: fp32 from
/// fp32, bf16 or fp16, or fp64 from fp64. For the device's current stream.
void sum_parts(const std::vector<at::Tensor>& parts, const at::Tensor& sum, bool accumulate);

}  // namespace satune
