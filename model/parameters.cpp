#include "model/parameters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <regex>

#include "data/files/error.h"

namespace satune {
namespace {

constexpr int64_t kPadding = 64;  // elements: every segment's buffer ends on a cache-line border

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::vector<bool> invert(std::vector<bool> mask) {
  mask.flip();
  return mask;
}

}  // namespace

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return at::kDouble;
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
  }
  TORCH_CHECK(false, "unknown dtype");
}

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::kF64;
    case at::kFloat:
      return DType::kF32;
    case at::kHalf:
      return DType::kF16;
    case at::kBFloat16:
      return DType::kBF16;
    default:
      TORCH_CHECK(false, "no checkpoint dtype for ", type);
  }
}

ParameterBuffers::ParameterBuffers(const TensorTable& table, std::vector<bool> selected, at::ScalarType type,
                                   at::Device device)
    : table_(table), type_(type), selected_(std::move(selected)) {
  const std::span<const TensorInfo> tensors = table_.tensors();
  TORCH_CHECK(selected_.size() == tensors.size());
  std::vector<int64_t> sizes(table_.num_segments(), 0);
  offsets_.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    offsets_[i] = sizes[tensors[i].segment];
    if (selected_[i]) sizes[tensors[i].segment] += tensors[i].numel();
  }
  const auto options = at::TensorOptions(type).device(device);
  for (int64_t size : sizes) flat_.push_back(at::zeros({round_up(size, kPadding)}, options));
  views_.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!selected_[i]) continue;
    views_[i] = flat_[tensors[i].segment].narrow(0, offsets_[i], tensors[i].numel()).view(tensors[i].shape);
  }
}

int64_t ParameterBuffers::numel() const {
  int64_t total = 0;
  for (size_t i = 0; i < selected_.size(); ++i) {
    if (selected_[i]) total += table_.tensors()[i].numel();
  }
  return total;
}

void ParameterBuffers::zero() const {
  for (const at::Tensor& flat : flat_) flat.zero_();
}

Weights::Weights(TensorTable tensor_table, std::vector<bool> trained_mask, at::ScalarType type,
                 at::Device device)
    : table(std::move(tensor_table)) {
  if (trained_mask.empty()) trained_mask.assign(table.tensors().size(), true);
  trained = ParameterBuffers(table, trained_mask, type, device);
  frozen = ParameterBuffers(table, invert(std::move(trained_mask)), type, device);
}

const at::Tensor& Weights::tensor(size_t index) const {
  return trained.selected(index) ? trained.tensor(index) : frozen.tensor(index);
}

const at::Tensor& Weights::tensor(std::string_view name) const {
  static const at::Tensor undefined;
  const TensorInfo* info = table.find(name);
  return info == nullptr ? undefined : tensor(static_cast<size_t>(info - table.tensors().data()));
}

at::ScalarType Weights::type() const {
  return trained.type();
}
at::Device Weights::device() const {
  return tensor(size_t{0}).device();
}

std::vector<bool> match_unfrozen(const TensorTable& table, const std::vector<std::string>& patterns) {
  std::vector<bool> trained(table.tensors().size(), patterns.empty());
  for (const std::string& pattern : patterns) {
    std::regex expression;
    try {
      expression = std::regex(pattern);
    } catch (const std::regex_error& error) {
      throw bad_input("unfrozen_parameters", fmt::format("\"{}\" ({})", pattern, error.what()),
                      "a regular expression");
    }
    bool matched = false;
    for (size_t i = 0; i < trained.size(); ++i) {
      if (!std::regex_search(table.tensors()[i].name, expression, std::regex_constants::match_continuous)) {
        continue;
      }
      trained[i] = matched = true;
    }
    if (!matched) {
      throw bad_input("unfrozen_parameters", fmt::format("\"{}\", which matches no tensor", pattern),
                      "the beginning of a tensor's name such as \"model.layers.2[3-6].\"");
    }
  }
  return trained;
}

}  // namespace satune
