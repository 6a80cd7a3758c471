// Stands in for the CUDA files where satune is built without nvcc: no tensor is on a card there.
#include "model/ops/cuda_stream.h"

namespace satune::cuda {
namespace {

[[noreturn]] void absent() {
  TORCH_CHECK(false, "satune was built without CUDA");
}

}  // namespace

Stream current_stream(const at::Tensor&) {
  absent();
}
void rms_norm_forward(Element, const void*, const void*, void*, void*, int64_t, int64_t, double, Stream) {
  absent();
}
int64_t rms_norm_partial_rows(int64_t) {
  absent();
}
void rms_norm_backward(Element, const void*, const void*, const void*, const void*, const void*, void*, void*,
                       const WeightGradient&, int64_t, int64_t, Stream) {
  absent();
}
void cross_entropy_rows(Element, void*, const int64_t*, void*, int64_t*, const double*, int64_t, int64_t,
                        Stream) {
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
void embedding_backward(Element, const void*, const int64_t*, const int64_t*, Element, void*, int64_t,
                        int64_t, Stream) {
  absent();
}

}  // namespace satune::cuda
