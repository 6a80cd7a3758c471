// Incremental decoding of sequences with a KV cache. A shared layer caches V only: the anchor's softmax
// weights of a new query row are computed once and reused by its whole span.
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
/// materialised probabilities, [K, H / K, T] for its one row of queries. Several sequences can take a step
/// together: one product with each weight for all of them. Works in the model's dtype and on its device.
class Decoder {
 public:
  /// `capacity` tokens at most in each of `sequences`; the cache is allocated at once. The model must outlive
  /// the decoder.
  Decoder(const Llama& model, int64_t capacity, int64_t sequences = 1);

  /// Appends tokens (prompt or one sampled token) and returns the logits [V] (fp32, on the CPU) after the
  /// last of them. Throws BadInput when the capacity is exceeded, `tokens` is empty, or an id is outside the
  /// vocabulary; nothing is appended then.
  at::Tensor append(std::span<const int32_t> tokens, int64_t sequence = 0);

  /// Appends one token to each of M different sequences, all of which hold some, and returns the logits
  /// [M, V] after them (fp32, on the CPU). Throws as append().
  at::Tensor step(std::span<const int32_t> tokens, std::span<const int64_t> sequences);

  /// Forgets the sequence and keeps the memory, for the next one.
  void clear(int64_t sequence = 0) { lengths_[sequence] = 0; }

  int64_t length(int64_t sequence = 0) const { return lengths_[sequence]; }
  int64_t capacity() const { return capacity_; }
  int64_t sequences() const { return static_cast<int64_t>(lengths_.size()); }
  /// Bytes of cache one token costs: 2 * K * D * layers, less K * D for each shared layer, times the
  /// element size.
  int64_t bytes_per_token() const;

 private:
  /// What an anchor hands to its span: q and k after RoPE for a prompt, each row's probabilities for a step.
  struct SpanInput {
    at::Tensor q_NHD, k_NKD;
    std::vector<at::Tensor> probabilities_KGT;
  };
  /// Rows that go through the model together: a prompt of one empty sequence, or a step of several.
  struct Rows {
    std::span<const int32_t> tokens;
    std::span<const int64_t> sequences;  ///< one for a prompt, one a row for a step
    bool step;
    at::Tensor positions_N;

    int64_t count() const { return static_cast<int64_t>(tokens.size()); }
  };

  /// Logits [1, V] after a prompt, [M, V] after a step.
  at::Tensor forward(std::span<const int32_t> tokens, std::span<const int64_t> sequences, bool step);
  at::Tensor attention(int layer, const at::Tensor& normed_NC, const Rows& rows,
                       std::vector<SpanInput>& span_inputs);
  /// Puts the rows' keys or values behind what the cache [sequences, capacity, K, D] holds.
  void remember(const at::Tensor& cache, const at::Tensor& new_NKD, const Rows& rows) const;
  void check(std::span<const int32_t> tokens, int64_t length) const;

  const Llama& model_;
  int64_t capacity_ = 0;
  std::vector<int64_t> lengths_;  ///< by sequence
  RopeTable rope_;
  std::vector<LayerWeights> layers_;
  /// Per layer [sequences, capacity, K, D]; keys_ undefined for shared layers.
  std::vector<at::Tensor> keys_, values_;
};

/// Bytes of KV cache per token of a model of this shape and plan.
int64_t kv_cache_bytes_per_token(const ModelConfig& config, int64_t element_bytes);

}  // namespace satune
