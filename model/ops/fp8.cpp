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
  return at::_scaled_mm(x_NI.rows_RC, weight_OI.rows_RC.t(), x_NI.scale, weight_OI.scale, /*bias=*/{},
                        /*scale_result=*/{}, type, /*use_fast_accum=*/true);
}

at::Tensor fp8_backward_input(const Fp8Matrix& d_y_NO, const Fp8Matrix& weight_OI, at::ScalarType type) {
  return at::_scaled_mm(d_y_NO.rows_RC, weight_OI.columns_CR.t(), d_y_NO.scale, weight_OI.scale, {}, {}, type,
                        /*use_fast_accum=*/false);
}

void fp8_backward_weight(const Fp8Matrix& d_y_NO, const Fp8Matrix& x_NI, const at::Tensor& d_weight_OI,
                         bool accumulate) {
  at::Tensor gradient = d_weight_OI;
  const auto product = [&](at::Tensor& out) {
    at::_scaled_mm_out(out, d_y_NO.columns_CR, x_NI.columns_CR.t(), d_y_NO.scale, x_NI.scale, {}, {},
                       out.scalar_type(), /*use_fast_accum=*/false);
  };
  if (!accumulate) return product(gradient);
  at::Tensor added = at::empty_like(gradient);
  product(added);
  gradient.add_(added);
}

}  // namespace satune
