#include "model/ops/fp8.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <bit>

#include "model/ops/cuda_stream.h"
#include "model/ops/dispatch.h"
#include "model/ops/fp8_format.h"
#include "model/ops/fp8_kernels.h"
#include "model/ops/linear_fp32.h"

namespace satune {
namespace {

at::ScalarType type_of(Fp8Format format) {
  return format == Fp8Format::kE5M2 ? at::kFloat8_e5m2 : at::kFloat8_e4m3fn;
}

uint8_t* stored_bytes(const at::Tensor& matrix) {
  return matrix.defined() ? static_cast<uint8_t*>(matrix.mutable_data_ptr()) : nullptr;
}

void fill_on_card(const at::Tensor& x_RC, Fp8Format format, at::Tensor largest, const Fp8Matrix& out) {
  const cuda::Element element = cuda::element_of(x_RC);
  const cuda::Fp8 kind = format == Fp8Format::kE5M2 ? cuda::Fp8::kE5M2 : cuda::Fp8::kE4M3;
  const cuda::Stream stream = cuda::current_stream(x_RC);
  const int64_t rows = x_RC.size(0), width = x_RC.size(1), stride = x_RC.stride(0);
  if (!largest.defined()) {
    uint32_t* parts = cuda::make_parts(&largest, cuda::fp8_largest_parts(rows), x_RC);
    cuda::fp8_largest(element, x_RC.const_data_ptr(), rows, width, stride, parts, stream);
  }
#ifdef SATUNE_EMULATED_CARD  // in tests, whether it is that of x
  const at::Tensor expected = x_RC.abs().max().to(at::kFloat);
  TORCH_CHECK(!at::isfinite(expected).item<bool>() ||
              largest.max().item<int>() == expected.view(at::kInt).item<int>());
#endif
  auto* scale = out.scale.mutable_data_ptr<float>();
  cuda::fp8_scale(static_cast<const uint32_t*>(largest.const_data_ptr()), largest.numel(), kind, scale,
                  stream);
  cuda::fp8_quantize(element, x_RC.const_data_ptr(), rows, width, stride, kind, scale,
                     stored_bytes(out.rows_RC), stored_bytes(out.columns_CR), fp8::padded_rows(rows), stream);
}

/// As cuda::fp8_scale.
template <typename T>
float scale_of(const T* x, int64_t rows, int64_t width, int64_t stride, Fp8Format format) {
  std::atomic<uint32_t> largest = 0;
  at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    const uint32_t here = kernels::largest_magnitude<T>(x, begin, end, width, stride);
    for (uint32_t known = largest; here > known && !largest.compare_exchange_weak(known, here);) {
    }
  });
  const float scale = std::bit_cast<float>(largest.load()) / fp8::largest_of(format == Fp8Format::kE5M2);
  return scale < fp8::kSmallestScale ? fp8::kSmallestScale : scale;  // NaN stays
}

void fill_on_cpu(const at::Tensor& x_RC, Fp8Format format, const Fp8Matrix& out) {
  const int64_t rows = x_RC.size(0), width = x_RC.size(1), stride = x_RC.stride(0);
  const at::Tensor bytes = out.rows_RC.defined() ? out.rows_RC.view(at::kByte)
                                                 : at::empty({rows, width}, x_RC.options().dtype(at::kByte));
  dispatch_floating(x_RC.scalar_type(), [&]<typename T>() {
    const T* x = x_RC.const_data_ptr<T>();
    const float scale = scale_of(x, rows, width, stride, format);
    *out.scale.mutable_data_ptr<float>() = scale;
    at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
      kernels::fp8_quantize<T>(x, begin, end, width, stride, format == Fp8Format::kE5M2, scale,
                               bytes.mutable_data_ptr<uint8_t>());
    });
  });
  if (!out.columns_CR.defined()) return;
  const at::Tensor columns = out.columns_CR.view(at::kByte);
  columns.narrow(1, 0, rows).copy_(bytes.t());
  columns.narrow(1, rows, columns.size(1) - rows).zero_();
}

/// a [M, K] b [N, K] transposed times both scales. On the CPU widened a tile at a time, summed in fp32 and
/// rounded once: LibTorch's own widens all at once, or on some CPUs takes a loop of scalars.
void product(const at::Tensor& a_MK, const at::Tensor& b_NK, const at::Tensor& scale_a,
             const at::Tensor& scale_b, bool fast_sums, at::Tensor& out_MN) {
  if (!a_MK.is_cpu()) {
    at::_scaled_mm_out(out_MN, a_MK, b_NK.t(), scale_a, scale_b, /*bias=*/{}, /*scale_result=*/{},
                       out_MN.scalar_type(), fast_sums);
    return;
  }
  const float scale = scale_a.item<float>() * scale_b.item<float>();
  const Fp32Tile tile(a_MK.size(0), b_NK.size(0), b_NK.size(1));
  for (int64_t row = 0; row < a_MK.size(0); row += tile.tokens) {
    const int64_t rows = std::min(tile.tokens, a_MK.size(0) - row);
    const at::Tensor a = a_MK.narrow(0, row, rows).to(at::kFloat);
    for (int64_t column = 0; column < b_NK.size(0); column += tile.outputs) {
      const int64_t columns = std::min(tile.outputs, b_NK.size(0) - column);
      const at::Tensor b = b_NK.narrow(0, column, columns).to(at::kFloat);
      out_MN.narrow(0, row, rows).narrow(1, column, columns).copy_(at::mm(a, b.t()).mul_(scale));
    }
  }
}

}  // namespace

Fp8Matrix to_fp8(const at::Tensor& x_RC, Fp8Format format, Fp8Layout layout, const at::Tensor& largest) {
  TORCH_CHECK(x_RC.dim() == 2 && x_RC.numel() > 0 && (x_RC.stride(1) == 1 || x_RC.size(1) == 1));
  const auto options = x_RC.options().dtype(type_of(format));
  const int64_t rows = x_RC.size(0), width = x_RC.size(1);
  Fp8Matrix out;
  out.scale = at::empty({}, x_RC.options().dtype(at::kFloat));
  if (layout != Fp8Layout::kColumns) out.rows_RC = at::empty({rows, width}, options);
  if (layout != Fp8Layout::kRows) out.columns_CR = at::empty({width, fp8::padded_rows(rows)}, options);
  if (cuda::on_card(x_RC)) {
    fill_on_card(x_RC, format, largest, out);
  } else {
    fill_on_cpu(x_RC, format, out);
  }
  return out;
}

bool takes_fp8(int64_t outputs, int64_t inputs) {
  return outputs % fp8::kMultiple == 0 && inputs % fp8::kMultiple == 0;
}

// Fast accumulation forward alone, as torchao and Transformer Engine have it: gradients keep their sums'
// bits.

at::Tensor fp8_forward(const Fp8Matrix& x_NI, const Fp8Matrix& weight_OI, at::ScalarType type) {
  at::Tensor y_NO =
      at::empty({x_NI.rows_RC.size(0), weight_OI.rows_RC.size(0)}, x_NI.scale.options().dtype(type));
  product(x_NI.rows_RC, weight_OI.rows_RC, x_NI.scale, weight_OI.scale, /*fast_sums=*/true, y_NO);
  return y_NO;
}

at::Tensor fp8_backward_input(const Fp8Matrix& d_y_NO, const Fp8Matrix& weight_OI, at::ScalarType type) {
  at::Tensor d_x_NI =
      at::empty({d_y_NO.rows_RC.size(0), weight_OI.columns_CR.size(0)}, d_y_NO.scale.options().dtype(type));
  product(d_y_NO.rows_RC, weight_OI.columns_CR, d_y_NO.scale, weight_OI.scale, /*fast_sums=*/false, d_x_NI);
  return d_x_NI;
}

void fp8_backward_weight(const Fp8Matrix& d_y_NO, const Fp8Matrix& x_NI, const at::Tensor& d_weight_OI,
                         bool accumulate) {
  at::Tensor gradient = d_weight_OI;
  at::Tensor added = accumulate ? at::empty_like(gradient) : gradient;
  product(d_y_NO.columns_CR, x_NI.columns_CR, d_y_NO.scale, x_NI.scale, /*fast_sums=*/false, added);
  if (accumulate) gradient.add_(added);
}

}  // namespace satune
