#include "model/parameters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <regex>
#include <utility>

#include "data/files/error.h"

namespace satune {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// A tensor with shape, type and device, and a storage that has no memory yet.
at::Tensor without_memory(int64_t numel, const at::TensorOptions& options) {
  const auto bytes = static_cast<size_t>(numel) * options.dtype().itemsize();
  c10::Storage storage(c10::Storage::use_byte_size_t{}, bytes, at::DataPtr(nullptr, options.device()),
                       nullptr,
                       /*resizable=*/false);
  return at::empty({0}, options).set_(std::move(storage), 0, {numel}, {1});
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
                                   at::Device device, const BufferLayout& layout)
    : table_(table), type_(type), selected_(std::move(selected)) {
  const std::span<const TensorInfo> tensors = table_.tensors();
  TORCH_CHECK(selected_.size() == tensors.size());
  used_.assign(table_.num_segments(), 0);
  attached_.resize(table_.num_segments());
  offsets_.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    offsets_[i] = used_[tensors[i].segment];
    if (selected_[i]) used_[tensors[i].segment] += tensors[i].numel();
  }
  const auto options = at::TensorOptions(type).device(device);
  for (const int64_t size : used_) {
    const int64_t padded = round_up(size, layout.alignment);
    flat_.push_back(layout.resident ? at::zeros({padded}, options) : without_memory(padded, options));
  }
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

void ParameterBuffers::attach(int segment, at::Tensor memory) {
  const at::Tensor& flat = flat_[segment];
  TORCH_CHECK(!attached_[segment].defined(), "segment ", segment, " has memory already");
  TORCH_CHECK(memory.scalar_type() == type_ && memory.numel() >= flat.numel() && memory.is_contiguous());
  flat.storage().set_data_ptr_noswap(at::DataPtr(memory.mutable_data_ptr(), memory.device()));
  attached_[segment] = std::move(memory);
}

ParameterBuffers ParameterBuffers::restricted(const TensorTable& table) const {
  ParameterBuffers result;
  result.table_ = table;
  result.type_ = type_;
  result.flat_ = flat_;
  result.attached_ = attached_;
  result.used_ = used_;
  for (const TensorInfo& tensor : table.tensors()) {
    const TensorInfo* info = table_.find(tensor.name);
    TORCH_CHECK(info != nullptr && info->shape == tensor.shape, "no tensor ", tensor.name);
    const auto index = static_cast<size_t>(info - table_.tensors().data());
    result.selected_.push_back(selected_[index]);
    result.views_.push_back(views_[index]);
    result.offsets_.push_back(offsets_[index]);
  }
  return result;
}

at::Tensor ParameterBuffers::detach(int segment) {
  if (!attached_[segment].defined()) return {};
  const at::Tensor& flat = flat_[segment];
  flat.storage().set_data_ptr_noswap(at::DataPtr(nullptr, flat.device()));
  return std::exchange(attached_[segment], at::Tensor());
}

Weights::Weights(TensorTable tensor_table, std::vector<bool> trained_mask, at::ScalarType type,
                 at::Device device, const BufferLayout& layout)
    : table(std::move(tensor_table)) {
  if (trained_mask.empty()) trained_mask.assign(table.tensors().size(), true);
  trained = ParameterBuffers(table, trained_mask, type, device, layout);
  frozen = ParameterBuffers(table, invert(std::move(trained_mask)), type, device, layout);
}

Weights Weights::restricted(const TensorTable& subset) const {
  Weights result;
  result.table = subset;
  result.trained = trained.restricted(subset);
  result.frozen = frozen.restricted(subset);
  return result;
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
