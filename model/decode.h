// Incremental decoding of sequences with a KV cache. A shared layer caches V only: the anchor's softmax
// weights of a new query row are computed once and reused by its whole span.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/cpu_step.h"
#include "model/kv_cache.h"
#include "model/layer.h"
#include "model/llama.h"
#include "model/ops/rope.h"

namespace satune {

/// A prompt goes through the flash path in one pass; afterwards every token is one step over the cache with
/// materialised probabilities, one row of them a query head. Several sequences can take a step together: one
/// product with each weight for all of them. Works in the model's dtype and on its device. On CPUs in fp32
/// and bf16 (CpuStep) a sequence's logits have the same bits whichever others step with it.
class Decoder {
 public:
  /// `capacity` tokens at most in each of `sequences`; the cache is allocated at once. The model must outlive
  /// the decoder, and its weights must stay where they are.
  Decoder(const Llama& model, int64_t capacity, int64_t sequences = 1);

  /// Appends tokens (a prompt, a turn of a conversation or one sampled token) and returns the logits [V]
  /// (fp32, on the CPU) after the last of them. Throws BadInput when the capacity is exceeded, `tokens` is
  /// empty, or an id is outside the vocabulary, and c10::Error for a sequence that the decoder lacks; nothing
  /// is appended then.
  at::Tensor append(std::span<const int32_t> tokens, int64_t sequence = 0);

  /// Appends one token to each of M different sequences, all of which hold some, and returns the logits
  /// [M, V] after them (fp32, on the CPU). Throws as append(), and c10::Error where there are not as many
  /// tokens as sequences or a sequence is there twice.
  at::Tensor step(std::span<const int32_t> tokens, std::span<const int64_t> sequences);

  /// Keeps the first `length` tokens of the sequence (at most those that it holds) and forgets the others.
  /// Throws c10::Error for a negative length and a sequence that the decoder lacks.
  void truncate(int64_t length, int64_t sequence = 0);
  /// Forgets the sequence and keeps the memory, for the next one.
  void clear(int64_t sequence = 0) { truncate(0, sequence); }

  int64_t length(int64_t sequence = 0) const { return lengths_[sequence]; }
  int64_t capacity() const { return capacity_; }
  int64_t sequences() const { return static_cast<int64_t>(lengths_.size()); }
  /// Of the cache as it is allocated.
  int64_t cache_bytes() const { return cache_.bytes(); }
  /// What it would be if every layer had keys of its own.
  int64_t dense_cache_bytes() const;
  /// As kv_cache_bytes_per_token().
  int64_t bytes_per_token() const;
  /// Over all steps (not prompts): a layer counts once a row.
  const AttentionCounts& attention_counts() const { return counts_; }

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

  /// Steps of one sequence with all of `tokens`, several rows at a time; logits [V] after the last.
  at::Tensor append_rows(std::span<const int32_t> tokens, int64_t sequence);
  /// Logits [1, V] after a prompt, [M, V] after a step, out of tensor operations.
  at::Tensor forward(std::span<const int32_t> tokens, std::span<const int64_t> sequences, bool step);
  at::Tensor attention(int layer, const at::Tensor& normed_NC, const Rows& rows,
                       std::vector<SpanInput>& span_inputs);
  /// Puts the rows' keys or values behind what the cache holds.
  void remember(const at::Tensor& cache, const at::Tensor& new_NKD, const Rows& rows) const;
  void check(std::span<const int32_t> tokens, int64_t length) const;
  void check_sequence(int64_t sequence) const;

  const Llama& model_;
  int64_t capacity_ = 0;
  std::vector<int64_t> lengths_;  ///< by sequence
  RopeTable rope_;
  std::vector<LayerWeights> layers_;
  KvCache cache_;
  std::unique_ptr<CpuStep> cpu_step_;  ///< none: steps are made of tensor operations
  AttentionCounts counts_;
};

}  // namespace satune
