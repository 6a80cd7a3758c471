#include "model/projection.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/ops/linear.h"

namespace satune {
namespace {

/// The weights of consecutive tensors of one buffer as one matrix.
at::Tensor span_view(const ParameterBuffers& buffers, const TensorTable& table,
                     const std::vector<size_t>& tensors) {
  const TensorInfo& first = table.tensors()[tensors.front()];
  int64_t rows = 0;
  for (size_t index : tensors) rows += table.tensors()[index].shape[0];
  const int64_t columns = first.shape[1];
  return buffers.flat(first.segment)
      .narrow(0, buffers.offset(tensors.front()), rows * columns)
      .view({rows, columns});
}

}  // namespace

FusedProjection::FusedProjection(const Weights& weights, std::vector<size_t> tensors, size_t first_slot) {
  for (size_t index : tensors) {
    const bool trained = weights.trained.selected(index);
    if (blocks_.empty() || blocks_.back().trained != trained)
      blocks_.push_back({{}, {}, trained, first_slot + blocks_.size()});
    blocks_.back().tensors.push_back(index);
  }
  for (Block& block : blocks_) {
    block.weight_OI =
        span_view(block.trained ? weights.trained : weights.frozen, weights.table, block.tensors);
  }
}

at::Tensor FusedProjection::forward(const at::Tensor& x_NI) const {
  if (blocks_.size() == 1) return linear_forward(x_NI, blocks_[0].weight_OI);
  std::vector<at::Tensor> parts;
  for (const Block& block : blocks_) parts.push_back(linear_forward(x_NI, block.weight_OI));
  return at::cat(parts, 1);
}

at::Tensor FusedProjection::forward(const at::Tensor& x_NI, const at::Tensor& residual_NO) const {
  TORCH_CHECK(blocks_.size() == 1);
  return linear_residual_forward(x_NI, blocks_[0].weight_OI, residual_NO);
}

std::vector<at::Tensor> FusedProjection::weights() const {
  std::vector<at::Tensor> weights;
  for (const Block& block : blocks_) weights.push_back(block.weight_OI);
  return weights;
}

at::Tensor FusedProjection::backward(const at::Tensor& d_y_NO, ProjectionInput& input,
                                     const ParameterBuffers& gradients, bool accumulate,
                                     bool need_input) const {
  for_each_block(d_y_NO, [&](const Block& block, const at::Tensor& d_part) {
    if (!block.trained) return;
    linear_backward_weight(d_part, input.x_NI, span_view(gradients, gradients.table(), block.tensors),
                           accumulate);
  });
  input = {};
  at::Tensor d_x;
  if (!need_input) return d_x;
  for_each_block(d_y_NO, [&](const Block& block, const at::Tensor& d_part) {
    const at::Tensor d_x_part = linear_backward_input(d_part, block.weight_OI);
    d_x = d_x.defined() ? d_x.add_(d_x_part) : d_x_part;
  });
  return d_x;
}

bool FusedProjection::takes_fp8() const {
  return std::all_of(blocks_.begin(), blocks_.end(), [](const Block& block) {
    return satune::takes_fp8(block.weight_OI.size(0), block.weight_OI.size(1));
  });
}

at::Tensor FusedProjection::forward8(ProjectionInput& input, Fp8Layout layout, const at::Tensor& residual_NO,
                                     Fp8Weights& weights) const {
  input.x8 = to_fp8(input.x_NI, Fp8Format::kE4M3, layout, input.largest);
  std::vector<at::Tensor> parts;
  for (const Block& block : blocks_) {
    const Fp8Matrix weight = weights.get(block.slot, block.weight_OI, block.trained, Fp8Layout::kRows);
    parts.push_back(fp8_forward(input.x8, weight, input.x_NI.scalar_type()));
  }
  input.x8.rows_RC.reset();
  at::Tensor y = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
  return residual_NO.defined() ? y.add_(residual_NO) : y;
}

at::Tensor FusedProjection::backward8(const at::Tensor& d_y_NO, ProjectionInput& input,
                                      const ParameterBuffers& gradients, bool accumulate, bool need_input,
                                      Fp8Weights& weights, const at::Tensor& largest_d_y) const {
  const at::ScalarType type = d_y_NO.scalar_type();
  std::vector<Fp8Matrix> d_parts;
  for_each_block(d_y_NO, [&](const Block& block, const at::Tensor& d_part) {
    const Fp8Layout layout = !block.trained ? Fp8Layout::kRows
                             : need_input   ? Fp8Layout::kBoth
                                            : Fp8Layout::kColumns;
    Fp8Matrix& d8 = d_parts.emplace_back();
    if (!block.trained && !need_input) return;
    // Of a part of d_y its own largest magnitudes count.
    d8 = to_fp8(d_part, Fp8Format::kE5M2, layout, blocks_.size() == 1 ? largest_d_y : at::Tensor());
    if (!block.trained) return;
    if (!input.x8.columns_CR.defined())
      input.x8 = to_fp8(input.x_NI, Fp8Format::kE4M3, Fp8Layout::kColumns, input.largest);
    fp8_backward_weight(d8, input.x8, span_view(gradients, gradients.table(), block.tensors), accumulate);
    d8.columns_CR.reset();
  });
  input = {};
  at::Tensor d_x;
  if (!need_input) return d_x;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    const Fp8Matrix weight = weights.get(block.slot, block.weight_OI, block.trained, Fp8Layout::kColumns);
    const at::Tensor d_x_part = fp8_backward_input(d_parts[i], weight, type);
    d_x = d_x.defined() ? d_x.add_(d_x_part) : d_x_part;
  }
  return d_x;
}

}  // namespace satune
