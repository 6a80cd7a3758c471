// Buffers that are used again: after the first pass over a model nothing is allocated any more.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace satune {

class BufferPool {
 public:
  BufferPool(at::ScalarType type, at::Device device) : type_(type), device_(device) {}

  /// The smallest returned buffer of at least `numel` elements, or a new one; 1-D, contents undefined.
  at::Tensor take(int64_t numel);
  void give(at::Tensor buffer);
  /// Of all buffers made so far.
  int64_t bytes() const { return bytes_; }

 private:
  at::ScalarType type_;
  at::Device device_;
  std::vector<at::Tensor> free_;  ///< ascending by size
  int64_t bytes_ = 0;
};

}  // namespace satune
