// The type of a stored tensor, where it is one that weights may have.
#pragma once

#include "model/files/model_config.h"
#include "model/files/safetensors.h"

namespace satune {

/// Throws BadInput naming the tensor for every other dtype (integers, fp8 ...).
DType dtype_of(const StoredTensor& stored);

}  // namespace satune
