#include "model/ops/swiglu.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "model/ops/cuda_stream.h"
#include "model/ops/dispatch.h"
#include "model/ops/swiglu_kernels.h"

namespace satune {

at::Tensor swiglu_forward(const at::Tensor& gate_up_N2F, at::Tensor* largest) {
  TORCH_CHECK(gate_up_N2F.is_contiguous() && gate_up_N2F.size(1) % 2 == 0);
  const int64_t rows = gate_up_N2F.size(0), ffn = gate_up_N2F.size(1) / 2;
  at::Tensor act_NF = at::empty({rows, ffn}, gate_up_N2F.options());
  if (cuda::on_card(gate_up_N2F)) {
    const cuda::Element element = cuda::element_of(gate_up_N2F);
    cuda::swiglu_forward(
        element, gate_up_N2F.const_data_ptr(), act_NF.mutable_data_ptr(),
        cuda::make_parts(largest, cuda::swiglu_largest_parts(element, rows, ffn), gate_up_N2F), rows, ffn,
        cuda::current_stream(gate_up_N2F));
    return act_NF;
  }
  dispatch_floating(gate_up_N2F.scalar_type(), [&]<typename T>() {
    at::parallel_for(0, rows, rows_per_task(2 * ffn), [&](int64_t begin, int64_t end) {
      kernels::swiglu_forward<T>(gate_up_N2F.const_data_ptr<T>(), act_NF.mutable_data_ptr<T>(), begin, end,
                                 ffn);
    });
  });
  return act_NF;
}

at::Tensor swiglu_backward(const at::Tensor& d_act_NF, const at::Tensor& gate_up_N2F, at::Tensor* largest) {
  TORCH_CHECK(gate_up_N2F.is_contiguous() && d_act_NF.is_contiguous());
  const int64_t rows = gate_up_N2F.size(0), ffn = gate_up_N2F.size(1) / 2;
  at::Tensor d_gate_up = at::empty_like(gate_up_N2F);
  if (cuda::on_card(gate_up_N2F)) {
    const cuda::Element element = cuda::element_of(gate_up_N2F);
    cuda::swiglu_backward(
        element, d_act_NF.const_data_ptr(), gate_up_N2F.const_data_ptr(), d_gate_up.mutable_data_ptr(),
        cuda::make_parts(largest, cuda::swiglu_largest_parts(element, rows, ffn), gate_up_N2F), rows, ffn,
        cuda::current_stream(gate_up_N2F));
    return d_gate_up;
  }
  dispatch_floating(gate_up_N2F.scalar_type(), [&]<typename T>() {
    at::parallel_for(0, rows, rows_per_task(2 * ffn), [&](int64_t begin, int64_t end) {
      kernels::swiglu_backward<T>(d_act_NF.const_data_ptr<T>(), gate_up_N2F.const_data_ptr<T>(),
                                  d_gate_up.mutable_data_ptr<T>(), begin, end, ffn);
    });
  });
  return d_gate_up;
}

}  // namespace satune
