// Stands in for the CUDA files where satune is built without nvcc: no tensor is on a card there.
#include "model/ops/cuda_stream.h"

namespace satune::cuda {
namespace {

[[noreturn]] void absent() {
  TORCH_CHECK(false, "satune was built without CUDA");
}

}  // namespace

Element element_of(const at::Tensor&) {
  absent();
}
Stream current_stream(const at::Tensor&) {
  absent();
}
void swiglu_forward(Element, const void*, void*, int64_t, int64_t, Stream) {
  absent();
}
void swiglu_backward(Element, const void*, const void*, void*, int64_t, int64_t, Stream) {
  absent();
}
void rope_apply(Element, void*, int64_t, const int64_t*, const void*, const void*, int64_t, int64_t, int64_t,
                int, Stream) {
  absent();
}

}  // namespace satune::cuda
