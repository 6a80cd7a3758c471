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
int compute_capability(const at::Device&) {
  absent();
}
int multiprocessors(const at::Device&) {
  absent();
}
void rms_norm_forward(Element, const void*, const void*, void*, void*, uint32_t*, int64_t, int64_t, double,
                      Stream) {
  absent();
}
int64_t rms_norm_partial_rows(int64_t) {
  absent();
}
void rms_norm_backward(Element, const void*, const void*, const void*, const void*, const void*, void*,
                       uint32_t*, void*, const WeightGradient&, int64_t, int64_t, Stream) {
  absent();
}
void cross_entropy_rows(Element, void*, const int64_t*, void*, int64_t*, const double*, int64_t, int64_t,
                        Stream) {
  absent();
}
int64_t swiglu_largest_parts(Element, int64_t, int64_t) {
  absent();
}
void swiglu_forward(Element, const void*, void*, uint32_t*, int64_t, int64_t, Stream) {
  absent();
}
void swiglu_backward(Element, const void*, const void*, void*, uint32_t*, int64_t, int64_t, Stream) {
  absent();
}
int64_t fp8_largest_parts(int64_t) {
  absent();
}
void fp8_largest(Element, const void*, int64_t, int64_t, int64_t, uint32_t*, Stream) {
  absent();
}
void fp8_scale(const uint32_t*, int64_t, Fp8, float*, Stream) {
  absent();
}
void fp8_quantize(Element, const void*, int64_t, int64_t, int64_t, Fp8, const float*, uint8_t*, uint8_t*,
                  int64_t, Stream) {
  absent();
}
void rope_apply(Element, void*, int64_t, const int64_t*, const void*, const void*, int64_t, int64_t, int64_t,
                int, Stream) {
  absent();
}
void document_offsets(const int32_t*, int64_t, int64_t, const RowStrides&, int64_t*, int32_t*, Stream) {
  absent();
}
void embedding_backward(Element, const void*, const int64_t*, const int64_t*, Element, void*, int64_t,
                        int64_t, Stream) {
  absent();
}

}  // namespace satune::cuda
