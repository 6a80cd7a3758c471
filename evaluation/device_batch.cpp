#include "evaluation/device_batch.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace satune {
namespace {

at::Tensor ids_to_device(const std::vector<int32_t>& values, at::Device device) {
  at::Tensor ids = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), ids.mutable_data_ptr<int64_t>());
  return ids.to(device);
}

}  // namespace

DeviceBatch to_device(const Batch& batch, at::Device device) {
  return {ids_to_device(batch.tokens, device),
          ids_to_device(batch.targets, device),
          ids_to_device(batch.positions, device),
          {batch.document_starts.begin(), batch.document_starts.end()},
          batch.target_count};
}

}  // namespace satune
