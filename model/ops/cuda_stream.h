// From a tensor to what the CUDA launchers take.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/ops/cuda_kernels.h"

namespace satune::cuda {

/// Whether ops of this tensor run CUDA kernels. With SATUNE_EMULATED_CARD all do: tests compile the ops so,
/// to run their host code and the kernels (tests/cuda_emulation) on tensors of the CPU.
inline bool on_card(const at::Tensor& tensor) {
#ifdef SATUNE_EMULATED_CARD
  static_cast<void>(tensor);
  return true;
#else
  return !tensor.is_cpu();
#endif
}

/// The launchers' name of the tensor's element type.
Element element_of(const at::Tensor& tensor);

/// LibTorch's current stream of the tensor's card, so that kernels and ATen ops run in order.
Stream current_stream(const at::Tensor& tensor);

}  // namespace satune::cuda
