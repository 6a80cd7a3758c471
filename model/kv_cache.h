// Memory of keys and values of several sequences. A shared layer has values only: it attends with its
// anchor's weights, so nobody would read its keys.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/files/model_config.h"

namespace satune {

struct KvCache {
  KvCache() = default;
  /// Allocated at once, `capacity` tokens for each of `sequences`.
  KvCache(const ModelConfig& config, int64_t sequences, int64_t capacity, at::ScalarType type,
          at::Device device);

  /// Of the tensors that are there.
  int64_t bytes() const;

  /// Per layer [sequences, K, capacity, D]: what one head of one sequence reads lies in a row. The keys of a
  /// shared layer are undefined.
  std::vector<at::Tensor> keys, values;
};

/// Bytes of cache per token of a model of this shape and plan: 2 * K * D * layers, less K * D for each shared
/// layer, times the element size.
int64_t kv_cache_bytes_per_token(const ModelConfig& config, int64_t element_bytes);

}  // namespace satune
