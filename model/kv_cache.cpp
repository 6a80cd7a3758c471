#include "model/kv_cache.h"

#include <ATen/ATen.h>

namespace satune {

KvCache::KvCache(const ModelConfig& config, int64_t sequences, int64_t capacity, at::ScalarType type,
                 at::Device device) {
  const auto memory = [&] {
    return at::empty({sequences, config.num_key_value_heads, capacity, config.head_dim},
                     at::TensorOptions(type).device(device));
  };
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    keys.push_back(config.sharing.is_shared(layer) ? at::Tensor() : memory());
    values.push_back(memory());
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const std::vector<at::Tensor>* tensors : {&keys, &values})
    for (const at::Tensor& tensor : *tensors)
      if (tensor.defined()) sum += static_cast<int64_t>(tensor.nbytes());
  return sum;
}

int64_t kv_cache_bytes_per_token(const ModelConfig& config, int64_t element_bytes) {
  const int64_t tensors = 2 * config.num_hidden_layers - config.sharing.num_shared();
  return tensors * config.key_value_size() * element_bytes;
}

}  // namespace satune
