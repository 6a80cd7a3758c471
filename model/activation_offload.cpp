#include "model/activation_offload.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

namespace satune {
namespace {

/// All of the memory that `tensor` is a view of.
at::Tensor whole_storage(const at::Tensor& tensor) {
  const auto bytes = static_cast<int64_t>(tensor.storage().nbytes());
  return at::empty({0}, tensor.options().dtype(at::kByte)).set_(tensor.storage(), 0, {bytes}, {1});
}

}  // namespace

ActivationOffload::ActivationOffload(at::Device device, int layers, std::unique_ptr<CopyQueue> copies)
    : device_(device), copies_(std::move(copies)), layers_(static_cast<size_t>(layers)) {}

at::Tensor ActivationOffload::host_bytes(Layer& layer, size_t storage) {
  const int64_t bytes = layer.bytes[storage];
  if (layer.on_host.size() <= storage) layer.on_host.resize(storage + 1);
  at::Tensor& buffer = layer.on_host[storage];
  if (!buffer.defined() || buffer.numel() < bytes) {
    buffer.reset();  // first, so that LibTorch may take the same memory again
    try {
      buffer = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(!device_.is_cpu()));
    } catch (const c10::Error& error) {
      // CUDA has the same words for memory of the card.
      TORCH_CHECK(false, "activation_offloading: can't allocate memory: ", bytes,
                  " bytes of pinned host memory (", error.what_without_backtrace(), ")");
    }
  }
  return buffer.narrow(0, 0, bytes);
}

void ActivationOffload::start_copy(Layer& layer, const at::Tensor& to, const at::Tensor& from) {
  layer.last_copy = copies_->copy(to, from);
}

void ActivationOffload::wait_for_copies(Layer& layer) {
  if (layer.last_copy) copies_->wait_for(*layer.last_copy);
  layer.last_copy.reset();
}

void ActivationOffload::store(int layer, const std::vector<at::Tensor*>& tensors) {
  settle();
  Layer& held = layers_[layer];
  copies_->tell(trace_, "activations of layer {} to the host", layer);
  for (at::Tensor* tensor : tensors) {
    const at::Tensor bytes = whole_storage(*tensor);
    const auto same = std::find_if(held.on_card.begin(), held.on_card.end(),
                                   [&](const at::Tensor& other) { return other.is_alias_of(bytes); });
    const auto storage = static_cast<size_t>(same - held.on_card.begin());
    held.slots.push_back({tensor, tensor->scalar_type(), tensor->sizes().vec(), tensor->strides().vec(),
                          tensor->storage_offset(), storage});
    tensor->reset();
    if (same != held.on_card.end()) continue;
    held.bytes.push_back(bytes.numel());
    held.on_card.push_back(bytes);
    start_copy(held, host_bytes(held, storage), bytes);
  }
  leaving_ = layer;
}

void ActivationOffload::leave_card(Layer& layer) {
  wait_for_copies(layer);
  layer.on_card.clear();
}

void ActivationOffload::settle() {
  if (leaving_ >= 0) leave_card(layers_[leaving_]);
  leaving_ = -1;
}

void ActivationOffload::fetch(int layer) {
  settle();
  Layer& held = layers_[layer];
  if (held.slots.empty() || !held.on_card.empty()) return;
  copies_->tell(trace_, "activations of layer {} back", layer);
  for (size_t storage = 0; storage < held.bytes.size(); ++storage) {
    held.on_card.push_back(at::empty({held.bytes[storage]}, at::TensorOptions(at::kByte).device(device_)));
    start_copy(held, held.on_card.back(), host_bytes(held, storage));
  }
}

void ActivationOffload::restore(int layer) {
  fetch(layer);
  Layer& held = layers_[layer];
  if (held.slots.empty()) return;
  wait_for_copies(held);
  for (const Slot& slot : held.slots) {
    *slot.tensor = at::empty({0}, at::TensorOptions(slot.type).device(device_))
                       .set_(held.on_card[slot.storage].storage(), slot.offset, slot.sizes, slot.strides);
  }
  held.slots.clear();
  held.bytes.clear();
  held.on_card.clear();
}

void ActivationOffload::forget() {
  for (Layer& layer : layers_) {
    leave_card(layer);
    layer.slots.clear();
    layer.bytes.clear();
  }
  leaving_ = -1;
}

}  // namespace satune
