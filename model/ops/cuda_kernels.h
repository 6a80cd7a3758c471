// Launchers of the CUDA kernels: raw pointers, sizes and a stream, so that the .cu files need no LibTorch
// header (2 s to compile instead of 20). Tensor checks are the callers'. Compiled where there is nvcc.
#pragma once

#include <cstdint>

namespace satune::cuda {

enum class Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

/// A cudaStream_t without its header.
using Stream = void*;

// All of them throw std::runtime_error with CUDA's message when a launch fails, and return before the card is
// done. Statistics are fp32 (fp64 for fp64). Results depend on the sizes alone: not on the alignment of the
// arrays, on the card, or on what else runs there. Arrays whose rows are multiples of 16 bytes and aligned to
// them are moved 16 bytes at a time. What each has to move is in trainer/kernel_traffic.h.

/// Where a weight's gradient is written, or added to.
struct WeightGradient {
  Element element = Element::kFloat32;
  void* values = nullptr;
  bool accumulate = false;
};

/// model/ops/rms_norm.h on contiguous x, y [rows, width]. rstd [rows] in the statistics' type. `largest`: of
/// y, a part each row, or null.
void rms_norm_forward(Element element, const void* x, const void* weight, void* y, void* rstd,
                      uint32_t* largest, int64_t rows, int64_t width, double eps, Stream stream);

/// Rows of `partial` that the backward of so many rows needs; 0 for none.
int64_t rms_norm_partial_rows(int64_t rows);

/// d_x = residual + gradient; `residual` may be null. `largest`: of d_x, rms_norm_partial_rows(rows) parts,
/// or null. `partial` [rms_norm_partial_rows(rows), width] in the statistics' type is scratch for d_weight
/// [width]; null: d_weight is not wanted.
void rms_norm_backward(Element element, const void* d_y, const void* x, const void* weight, const void* rstd,
                       const void* residual, void* d_x, uint32_t* largest, void* partial,
                       const WeightGradient& d_weight, int64_t rows, int64_t width, Stream stream);

/// Cross-entropy of contiguous logits [rows, vocabulary] against targets in [0, vocabulary): loss [rows] in
/// the statistics' type, correct [rows] (1 where the target is the first of the largest logits, else 0). With
/// `scale` (read on the host) the logits are replaced by (softmax - onehot(target)) * scale. Two passes over
/// a row.
void cross_entropy_rows(Element element, void* logits, const int64_t* targets, void* loss, int64_t* correct,
                        const double* scale, int64_t rows, int64_t vocabulary, Stream stream);

/// model/ops/swiglu.h on contiguous gate_up [rows, 2 * ffn] and act [rows, ffn]. `largest`: of the result,
/// swiglu_largest_parts() of them, or null.
int64_t swiglu_largest_parts(Element element, int64_t rows, int64_t ffn);
void swiglu_forward(Element element, const void* gate_up, void* act, uint32_t* largest, int64_t rows,
                    int64_t ffn, Stream stream);
void swiglu_backward(Element element, const void* d_act, const void* gate_up, void* d_gate_up,
                     uint32_t* largest, int64_t rows, int64_t ffn, Stream stream);

/// model/ops/fp8.h.
enum class Fp8 { kE4M3, kE5M2 };

/// The largest |x| of each of so many parts of x (rows of `width`, `row_stride` elements apart; at least one
/// row), as the bits of an fp32 number: what other launchers here give of their results where it is asked
/// for, but of fp64 (whose `largest` is to be null).
int64_t fp8_largest_parts(int64_t rows);
void fp8_largest(Element element, const void* x, int64_t rows, int64_t width, int64_t row_stride,
                 uint32_t* parts, Stream stream);

/// scale [1], fp32: the largest of the parts over the largest number of the format, but not below fp32's
/// smallest normal number; infinite or NaN where one of them is.
void fp8_scale(const uint32_t* parts, int64_t count, Fp8 format, float* scale, Stream stream);

/// x / scale in bytes of the format, rounded to nearest even, what is beyond its range at its end: to
/// `by_rows` [rows, width] and to `by_columns` [width, padded_rows], with zeros from `rows` on. Either may be
/// null. padded_rows: a multiple of 16, `rows` at least.
void fp8_quantize(Element element, const void* x, int64_t rows, int64_t width, int64_t row_stride, Fp8 format,
                  const float* scale, uint8_t* by_rows, uint8_t* by_columns, int64_t padded_rows,
                  Stream stream);

/// model/ops/rope.h in place on x: rows of heads x head_dim, `row_stride` elements apart. cos and sin
/// [positions, head_dim / 2] are fp32 (fp64 for fp64). sign: +1 forward, -1 inverse.
void rope_apply(Element element, void* x, int64_t row_stride, const int64_t* positions, const void* cos_table,
                const void* sin_table, int64_t rows, int64_t heads, int64_t head_dim, int sign,
                Stream stream);

/// Elements between the rows of up to 9 arrays.
struct RowStrides {
  static constexpr int kMost = 9;
  int count = 0;
  int64_t elements[kMost] = {};
};

/// Elements between the offsets of one array and the next: each begins at a multiple of 16 bytes.
constexpr int64_t offsets_pitch(int64_t slots) {
  return (slots + 2) / 2 * 2;
}

/// Where documents begin in arrays with such rows, offsets [count, offsets_pitch(slots)] in elements, slots +
/// 1 of them; and how many rows they have, lengths [slots]; of the slots past the `documents` the end of the
/// last, and 0. starts [documents + 1]: in rows.
void document_offsets(const int32_t* starts, int64_t documents, int64_t slots, const RowStrides& rows,
                      int64_t* offsets, int32_t* lengths, Stream stream);

/// model/ops/embedding.h: d_weight[token] += sum of the token's rows of d_out [rows, width], added one after
/// another in fp32 (fp64 for fp64). sorted_tokens [rows]: the tokens in ascending order, equal ones in the
/// order of `places` [rows], the rows of d_out that they belong to.
void embedding_backward(Element element, const void* d_out, const int64_t* sorted_tokens,
                        const int64_t* places, Element weight_element, void* d_weight, int64_t rows,
                        int64_t width, Stream stream);

}  // namespace satune::cuda
