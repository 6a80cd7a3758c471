#include "model/files/stored_dtype.h"

#include "data/files/error.h"

namespace satune {

DType dtype_of(const StoredTensor& stored) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    if (stored.dtype == safetensors_name(dtype)) return dtype;
  }
  throw bad_input("tensor " + stored.name, stored.dtype, "F64, F32, F16 or BF16");
}

}  // namespace satune
