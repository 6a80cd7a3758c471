// Row kernels of SwiGLU, without LibTorch.
#pragma once

#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

template <typename T>
void swiglu_forward(const T* gate_up, T* act, int64_t begin, int64_t end, int64_t ffn);
template <typename T>
void swiglu_backward(const T* d_act, const T* gate_up, T* d_gate_up, int64_t begin, int64_t end, int64_t ffn);

}  // namespace satune::kernels
