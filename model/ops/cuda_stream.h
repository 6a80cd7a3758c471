// From a tensor to what the CUDA launchers take.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/ops/cuda_kernels.h"

namespace satune::cuda {

/// The launchers' name of the tensor's element type.
Element element_of(const at::Tensor& tensor);

/// LibTorch's current stream of the tensor's card, so that kernels and ATen ops run in order.
Stream current_stream(const at::Tensor& tensor);

}  // namespace satune::cuda
