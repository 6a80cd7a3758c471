// A batch of ids as the model takes it.
#pragma once

#include <ATen/core/Tensor.h>

#include "data/batch.h"
#include "model/llama.h"

namespace satune {

/// Copies the batch to `device`, ids as int64. To a card on its current stream, in one piece, and without
/// waiting for what is queued there.
DeviceBatch to_device(const Batch& batch, at::Device device);

}  // namespace satune
