#include "model/ops/cuda_stream.h"

namespace satune::cuda {

Stream current_stream(const at::Tensor&) {
  return nullptr;
}

}  // namespace satune::cuda
