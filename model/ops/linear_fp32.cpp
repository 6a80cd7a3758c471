#include "model/ops/linear_fp32.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/ops/dispatch.h"

namespace satune {
namespace {

constexpr int64_t kTileTokens = 1024, kTileElements = int64_t{1} << 21;

/// Calls f(first, count) over [0, size) in steps of at most `step`.
template <typename F>
void for_each_tile(int64_t size, int64_t step, F&& f) {
  for (int64_t first = 0; first < size; first += step) f(first, std::min(step, size - first));
}

at::Tensor widened(const at::Tensor& x) {
  return x.to(at::kFloat);
}

}  // namespace

Fp32Tile::Fp32Tile(int64_t all_tokens, int64_t all_outputs, int64_t all_inputs)
    : tokens(std::min(all_tokens, kTileTokens)),
      outputs(std::min(all_outputs,
                       std::clamp<int64_t>(kTileElements / std::max<int64_t>(all_inputs, 1), 64, 4096))),
      inputs(all_inputs) {}

at::Tensor linear_fp32_forward(const at::Tensor& x_NI, const at::Tensor& weight_OI,
                               const at::Tensor& residual_NO) {
  const int64_t outputs = weight_OI.size(0);
  const Fp32Tile tile(x_NI.size(0), outputs, weight_OI.size(1));
  at::Tensor y_NO = at::empty({x_NI.size(0), outputs}, x_NI.options());
  for_each_tile(x_NI.size(0), tile.tokens, [&](int64_t token, int64_t tokens) {
    const at::Tensor x = widened(x_NI.narrow(0, token, tokens));
    for_each_tile(outputs, tile.outputs, [&](int64_t output, int64_t count) {
      const at::Tensor weight = widened(weight_OI.narrow(0, output, count));
      const auto place = [&](const at::Tensor& of) {
        return of.narrow(0, token, tokens).narrow(1, output, count);
      };
      const at::Tensor y = residual_NO.defined() ? at::addmm(widened(place(residual_NO)), x, weight.t())
                                                 : at::mm(x, weight.t());
      place(y_NO).copy_(y);
    });
  });
  return y_NO;
}

at::Tensor linear_fp32_backward_input(const at::Tensor& d_y_NO, const at::Tensor& weight_OI) {
  const int64_t outputs = weight_OI.size(0), inputs = weight_OI.size(1);
  const Fp32Tile tile(d_y_NO.size(0), outputs, inputs);
  at::Tensor d_x_NI = at::empty({d_y_NO.size(0), inputs}, d_y_NO.options());
  for_each_tile(d_y_NO.size(0), tile.tokens, [&](int64_t token, int64_t tokens) {
    at::Tensor sum = at::zeros({tokens, inputs}, d_y_NO.options().dtype(at::kFloat));
    for_each_tile(outputs, tile.outputs, [&](int64_t output, int64_t count) {
      const at::Tensor d_y = d_y_NO.narrow(0, token, tokens).narrow(1, output, count);
      at::addmm_out(sum, sum, widened(d_y), widened(weight_OI.narrow(0, output, count)));
    });
    d_x_NI.narrow(0, token, tokens).copy_(sum);
  });
  return d_x_NI;
}

void linear_fp32_backward_weight(const at::Tensor& d_y_NO, const at::Tensor& x_NI,
                                 const at::Tensor& d_weight_OI, bool accumulate) {
  const bool direct = d_weight_OI.scalar_type() == at::kFloat;
  const int64_t outputs = d_weight_OI.size(0), inputs = d_weight_OI.size(1);
  const Fp32Tile tile(x_NI.size(0), outputs, inputs);
  for_each_tile(outputs, tile.outputs, [&](int64_t output, int64_t count) {
    at::Tensor gradient = d_weight_OI.narrow(0, output, count);
    at::Tensor sum = direct ? gradient : at::empty({count, inputs}, x_NI.options().dtype(at::kFloat));
    if (!direct || !accumulate) sum.zero_();
    for_each_tile(x_NI.size(0), tile.tokens, [&](int64_t token, int64_t tokens) {
      const at::Tensor d_y = widened(d_y_NO.narrow(0, token, tokens).narrow(1, output, count));
      at::addmm_out(sum, sum, d_y.t(), widened(x_NI.narrow(0, token, tokens)));
    });
    if (!direct) write_gradient(gradient, sum, accumulate);
  });
}

}  // namespace satune
