#include "trainer/host_staging.h"

#include <ATen/ATen.h>

#include <utility>

namespace satune {

HostStaging::HostStaging(at::Device card, at::ScalarType gradient, at::ScalarType weight, int64_t elements)
    : down_(make_copy_queue(card)), up_(make_copy_queue(card)) {
  for (Buffer& buffer : gradients_)
    buffer.memory = at::empty({elements}, at::dtype(gradient).pinned_memory(true));
  for (Buffer& buffer : weights_)
    buffer.memory = at::empty({elements}, at::dtype(weight).pinned_memory(true));
}

void HostStaging::fetch(const at::Tensor& gradient) {
  TORCH_CHECK(fetched_.size() < gradients_.size(), "more pieces on their way than buffers");
  const size_t place = next_gradient_++ % gradients_.size();
  Buffer& buffer = gradients_[place];
  buffer.copy = down_->copy(buffer.memory.narrow(0, 0, gradient.numel()), gradient);
  fetched_.push_back({place, gradient.numel()});
}

at::Tensor HostStaging::take() {
  TORCH_CHECK(!fetched_.empty(), "no piece was fetched");
  const Fetched next = fetched_.front();
  fetched_.pop_front();
  const Buffer& buffer = gradients_[next.buffer];
  down_->finish(buffer.copy);
  return buffer.memory.narrow(0, 0, next.elements);
}

at::Tensor HostStaging::place(int64_t elements) {
  Buffer& buffer = weights_[next_weight_ % weights_.size()];
  if (std::exchange(buffer.in_use, false)) up_->finish(buffer.copy);
  return buffer.memory.narrow(0, 0, elements);
}

void HostStaging::send(const at::Tensor& placed, const at::Tensor& weights) {
  Buffer& buffer = weights_[next_weight_++ % weights_.size()];
  TORCH_CHECK(placed.is_alias_of(buffer.memory));
  buffer.copy = up_->copy(weights, placed);
  buffer.in_use = true;
}

void HostStaging::finish() {
  // Copies of a queue end in their order.
  const Buffer& last = weights_[(next_weight_ + weights_.size() - 1) % weights_.size()];
  if (last.in_use) up_->wait_for(last.copy);
}

}  // namespace satune
