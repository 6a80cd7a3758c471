// Incremental decoding of one sequence with a KV cache. A shared layer caches V only: the anchor's softmax
// weights of the new query row are computed once and reused by its whole span.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "model/layer.h"
#include "model/llama.h"
#include "model/ops/rope.h"

namespace satune {

/// A prompt goes through the flash path in one pass; afterwards every token is one step over the cache with
/// materialised probabilities, [K, H / K, T] for its one row of queries. Works in the model's dtype and on
/// its device.
class Decoder {
 public:
  /// `capacity` tokens at most; the cache is allocated at once. The model must outlive the decoder.
  Decoder(const Llama& model, int64_t capacity);

  /// Appends tokens (prompt or one sampled token) and returns the logits [V] (fp32, on the CPU) after the
  /// last of them. Throws BadInput when the capacity is exceeded, `tokens` is empty, or an id is outside the
  /// vocabulary; nothing is appended then.
  at::Tensor append(std::span<const int32_t> tokens);

  /// Forgets the sequence and keeps the memory, for the next one.
  void clear() { length_ = 0; }

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  /// Bytes of cache one token costs: 2 * K * D * layers, less K * D for each shared layer, times the
  /// element size.
  int64_t bytes_per_token() const;

 private:
  /// What an anchor hands to its span: q and k after RoPE for a prompt, the probabilities
  /// for a step.
  struct SpanInput {
    at::Tensor q_NHD, k_NKD, probabilities_KGT;
  };

  at::Tensor forward(std::span<const int32_t> tokens);
  at::Tensor attention(int layer, const at::Tensor& normed_NC, const at::Tensor& positions_N,
                       std::vector<SpanInput>& span_inputs);
  void check(std::span<const int32_t> tokens) const;

  const Llama& model_;
  int64_t capacity_ = 0, length_ = 0;
  RopeTable rope_;
  std::vector<LayerWeights> layers_;
  std::vector<at::Tensor> keys_, values_;  ///< per layer [capacity, K, D]; keys_ undefined for shared layers
};

/// Bytes of KV cache per token of a model of this shape and plan.
int64_t kv_cache_bytes_per_token(const ModelConfig& config, int64_t element_bytes);

}  // namespace satune
