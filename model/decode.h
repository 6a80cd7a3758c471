// Incremental decoding of one sequence with a KV cache. A shared layer caches V only: the anchor's softmax
// weights of the new query row are computed once and reused by its whole span.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "model/llama.h"

namespace satune {

class Decoder {
 public:
  /// `capacity` tokens at most; grows are not possible. The model must outlive the decoder.
  Decoder(const Llama& model, int64_t capacity);

  /// Appends tokens (prompt or one sampled token) and returns the logits [V] (fp32, on the CPU) after the
  /// last of them. Throws BadInput when the capacity is exceeded.
  at::Tensor append(std::span<const int32_t> tokens);

  int64_t length() const { return length_; }
  /// Bytes of cache one token costs: 2 * K * D * layers, less K * D for each shared layer, times the
  /// element size.
  int64_t bytes_per_token() const;

 private:
  const Llama& model_;
  int64_t capacity_ = 0, length_ = 0;
  std::vector<at::Tensor> keys_, values_;  ///< per layer [capacity, K, D]; keys_ undefined for shared layers
};

}  // namespace satune
