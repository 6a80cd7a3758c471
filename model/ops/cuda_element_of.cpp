#include "model/ops/cuda_stream.h"

namespace satune::cuda {

Element element_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Element::kFloat32;
    case at::kDouble:
      return Element::kFloat64;
    case at::kBFloat16:
      return Element::kBFloat16;
    case at::kHalf:
      return Element::kFloat16;
    default:
      TORCH_CHECK(false, "not a floating element type: ", tensor.scalar_type());
  }
}

}  // namespace satune::cuda
