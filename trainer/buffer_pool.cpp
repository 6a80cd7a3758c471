#include "trainer/buffer_pool.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace satune {

at::Tensor BufferPool::take(int64_t numel) {
  const auto fits = std::partition_point(free_.begin(), free_.end(),
                                         [&](const at::Tensor& buffer) { return buffer.numel() < numel; });
  if (fits == free_.end()) {
    at::Tensor fresh = at::empty({numel}, at::TensorOptions(type_).device(device_));
    bytes_ += static_cast<int64_t>(fresh.nbytes());
    return fresh;
  }
  at::Tensor buffer = *fits;
  free_.erase(fits);
  return buffer;
}

void BufferPool::give(at::Tensor buffer) {
  const auto place = std::partition_point(
      free_.begin(), free_.end(), [&](const at::Tensor& other) { return other.numel() < buffer.numel(); });
  free_.insert(place, std::move(buffer));
}

}  // namespace satune
