#include "model/ops/rms_norm.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "model/ops/dispatch.h"
#include "model/ops/rms_norm_kernels.h"

namespace satune {
namespace {

constexpr int64_t kRowsPerBlock = 64;  // d_weight is summed per block, then over blocks in order

RmsNormOut forward_any_device(const at::Tensor& x_NC, const at::Tensor& weight_C, double eps) {
  const at::Tensor wide = x_NC.to(statistics_type(x_NC.scalar_type()));
  const at::Tensor rstd_N = at::rsqrt(wide.square().mean(-1) + eps);
  return {(wide * rstd_N.unsqueeze(-1)).to(x_NC.scalar_type()).mul_(weight_C), rstd_N};
}

at::Tensor backward_any_device(const at::Tensor& d_y_NC, const at::Tensor& x_NC, const at::Tensor& weight_C,
                               const at::Tensor& rstd_N, const at::Tensor& residual_NC,
                               const at::Tensor& d_weight_C, bool accumulate) {
  const at::ScalarType wide = statistics_type(x_NC.scalar_type());
  const at::Tensor x_hat = x_NC.to(wide) * rstd_N.unsqueeze(-1);
  const at::Tensor d_wide = d_y_NC.to(wide);
  if (d_weight_C.defined()) {
    const at::Tensor rounded = x_hat.to(x_NC.scalar_type()).to(wide);
    write_gradient(d_weight_C, (d_wide * rounded).sum(0), accumulate);
  }
  const at::Tensor d_hat = d_wide * weight_C.to(wide);
  at::Tensor d_x = (d_hat - x_hat * (d_hat * x_hat).mean(-1, true)) * rstd_N.unsqueeze(-1);
  if (residual_NC.defined()) d_x += residual_NC.to(wide);
  return d_x.to(x_NC.scalar_type());
}

}  // namespace

RmsNormOut rms_norm_forward(const at::Tensor& x_NC, const at::Tensor& weight_C, double eps) {
  TORCH_CHECK(x_NC.dim() == 2 && x_NC.is_contiguous() && weight_C.size(0) == x_NC.size(1));
  if (!x_NC.is_cpu()) return forward_any_device(x_NC, weight_C, eps);
  RmsNormOut out{at::empty_like(x_NC),
                 at::empty({x_NC.size(0)}, x_NC.options().dtype(statistics_type(x_NC.scalar_type())))};
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
                             const at::Tensor& d_weight_C, bool accumulate) {
  TORCH_CHECK(d_y_NC.is_contiguous() && x_NC.is_contiguous());
  if (!x_NC.is_cpu()) {
    return backward_any_device(d_y_NC, x_NC, weight_C, rstd_N, residual_NC, d_weight_C, accumulate);
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
