// From a tensor to what the CUDA launchers take.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

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

/// Of a card: 90 for compute capability 9.0, and how many multiprocessors it has.
int compute_capability(const at::Device& card);
int multiprocessors(const at::Device& card);

/// Where a launcher writes the largest magnitudes of `count` parts of its result: a new tensor in `*parts`,
/// on the card of `like`. Null where nobody asked.
inline uint32_t* make_parts(at::Tensor* parts, int64_t count, const at::Tensor& like) {
  if (parts == nullptr) return nullptr;
  *parts = at::empty({count}, like.options().dtype(at::kInt));
  return static_cast<uint32_t*>(parts->mutable_data_ptr());
}

}  // namespace satune::cuda
