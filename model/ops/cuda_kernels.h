// Launchers of the CUDA kernels: raw pointers, sizes and a stream, so that the .cu files need no LibTorch
// header (2 s to compile instead of 20). Tensor checks are the callers'. Compiled where there is nvcc.
#pragma once

#include <cstdint>

namespace satune::cuda {

enum class Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

/// A cudaStream_t without its header.
using Stream = void*;

/// model/ops/swiglu.h on contiguous gate_up [rows, 2 * ffn] and act [rows, ffn]. Statistics in fp32 (fp64 for
/// fp64). Both throw std::runtime_error with CUDA's message when the launch fails.
void swiglu_forward(Element element, const void* gate_up, void* act, int64_t rows, int64_t ffn,
                    Stream stream);
void swiglu_backward(Element element, const void* d_act, const void* gate_up, void* d_gate_up, int64_t rows,
                     int64_t ffn, Stream stream);

/// model/ops/rope.h in place on x: rows of heads x head_dim, `row_stride` elements apart. cos and sin
/// [positions, head_dim / 2] are fp32 (fp64 for fp64). sign: +1 forward, -1 inverse.
void rope_apply(Element element, void* x, int64_t row_stride, const int64_t* positions, const void* cos_table,
                const void* sin_table, int64_t rows, int64_t heads, int64_t head_dim, int sign,
                Stream stream);

}  // namespace satune::cuda
