#include "model/ops/rms_norm.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "model/ops/cuda_stream.h"
#include "model/ops/dispatch.h"
#include "model/ops/rms_norm_kernels.h"

namespace satune {
namespace {

constexpr int64_t kRowsPerBlock = 64;  // d_weight is summed per block, then over blocks in order

at::Tensor backward_on_card(const at::Tensor& d_y_NC, const at::Tensor& x_NC, const at::Tensor& weight_C,
                            const at::Tensor& rstd_N, const at::Tensor& residual_NC,
                            const at::Tensor& d_weight_C, bool accumulate, at::Tensor* largest) {
  const int64_t rows = x_NC.size(0), width = x_NC.size(1);
  at::Tensor d_x = at::empty_like(x_NC), partial_BC;
  cuda::WeightGradient d_weight;
  if (d_weight_C.defined()) {
    TORCH_CHECK(d_weight_C.is_contiguous());
    partial_BC = at::empty({cuda::rms_norm_partial_rows(rows), width}, rstd_N.options());
    d_weight = {cuda::element_of(d_weight_C), d_weight_C.mutable_data_ptr(), accumulate};
  }
  cuda::rms_norm_backward(
      cuda::element_of(x_NC), d_y_NC.const_data_ptr(), x_NC.const_data_ptr(), weight_C.const_data_ptr(),
      rstd_N.const_data_ptr(), residual_NC.defined() ? residual_NC.const_data_ptr() : nullptr,
      d_x.mutable_data_ptr(), cuda::make_parts(largest, cuda::rms_norm_partial_rows(rows), x_NC),
      partial_BC.defined() ? partial_BC.mutable_data_ptr() : nullptr, d_weight, rows, width,
      cuda::current_stream(x_NC));
  return d_x;
}

}  // namespace

RmsNormOut rms_norm_forward(const at::Tensor& x_NC, const at::Tensor& weight_C, double eps,
                            at::Tensor* largest) {
  TORCH_CHECK(x_NC.dim() == 2 && x_NC.is_contiguous() && weight_C.size(0) == x_NC.size(1));
  TORCH_CHECK(weight_C.is_contiguous() && weight_C.scalar_type() == x_NC.scalar_type());
  RmsNormOut out{at::empty_like(x_NC),
                 at::empty({x_NC.size(0)}, x_NC.options().dtype(statistics_type(x_NC.scalar_type())))};
  if (cuda::on_card(x_NC)) {
    cuda::rms_norm_forward(cuda::element_of(x_NC), x_NC.const_data_ptr(), weight_C.const_data_ptr(),
                           out.y_NC.mutable_data_ptr(), out.rstd_N.mutable_data_ptr(),
                           cuda::make_parts(largest, x_NC.size(0), x_NC), x_NC.size(0), x_NC.size(1), eps,
                           cuda::current_stream(x_NC));
    return out;
  }
  dispatch_floating(x_NC.scalar_type(), [&]<typename T>() {
    at::parallel_for(0, x_NC.size(0), rows_per_task(x_NC.size(1)), [&](int64_t begin, int64_t end) {
      kernels::rms_norm_forward<T>(
          x_NC.const_data_ptr<T>(), weight_C.const_data_ptr<T>(), out.y_NC.mutable_data_ptr<T>(),
          out.rstd_N.mutable_data_ptr<kernels::accumulate_t<T>>(), begin, end, x_NC.size(1), eps);
    });
  });
  return out;
}

at::Tensor rms_norm_backward(const at::Tensor& d_y_NC, const at::Tensor& x_NC, const at::Tensor& weight_C,
                             const at::Tensor& rstd_N, const at::Tensor& residual_NC,
                             const at::Tensor& d_weight_C, bool accumulate, at::Tensor* largest) {
  TORCH_CHECK(d_y_NC.is_contiguous() && x_NC.is_contiguous() && d_y_NC.sizes() == x_NC.sizes());
  TORCH_CHECK(!residual_NC.defined() || (residual_NC.is_contiguous() && residual_NC.sizes() == x_NC.sizes() &&
                                         residual_NC.scalar_type() == x_NC.scalar_type()));
  if (cuda::on_card(x_NC)) {
    return backward_on_card(d_y_NC, x_NC, weight_C, rstd_N, residual_NC, d_weight_C, accumulate, largest);
  }
  const int64_t rows = x_NC.size(0), width = x_NC.size(1);
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  at::Tensor d_x = at::empty_like(x_NC);
  at::Tensor partial_BC;
  if (d_weight_C.defined()) partial_BC = at::zeros({blocks, width}, rstd_N.options());
  dispatch_floating(x_NC.scalar_type(), [&]<typename T>() {
    using A = kernels::accumulate_t<T>;
    A* partial = partial_BC.defined() ? partial_BC.mutable_data_ptr<A>() : nullptr;
    const T* residual = residual_NC.defined() ? residual_NC.const_data_ptr<T>() : nullptr;
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        kernels::rms_norm_backward<T>(
            d_y_NC.const_data_ptr<T>(), x_NC.const_data_ptr<T>(), weight_C.const_data_ptr<T>(),
            rstd_N.const_data_ptr<A>(), residual, d_x.mutable_data_ptr<T>(),
            partial == nullptr ? nullptr : partial + block * width, block * kRowsPerBlock,
            std::min(rows, (block + 1) * kRowsPerBlock), width);
      }
    });
  });
  if (partial_BC.defined()) write_gradient(d_weight_C, partial_BC.sum(0), accumulate);
  return d_x;
}

}  // namespace satune
