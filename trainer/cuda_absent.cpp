// Stands in for the CUDA files where satune is built without nvcc: no tensor is on a card there.
#include <stdexcept>

#include "trainer/cuda_kernels.h"

namespace satune::cuda {
namespace {

[[noreturn]] void no_kernels() {
  throw std::runtime_error("satune was built without CUDA");
}

}  // namespace

void adamw_update(const AdamWArrays&, int64_t, const AdamWCoefficients&, Stream) {
  no_kernels();
}
void adamw_update_state(const AdamWState&, int64_t, const AdamWPiece*, int64_t, const StateUpdate&, Stream) {
  no_kernels();
}
int64_t sum_of_squares_parts(int64_t) {
  no_kernels();
}
void sum_of_squares(Element, const void*, int64_t, double*, Stream) {
  no_kernels();
}
void sum_of_parts(const double*, int64_t, double*, Stream) {
  no_kernels();
}
void decide_update(const StepNumbers&, float*, Stream) {
  no_kernels();
}
void sum_ranks(Element, const void* const*, int64_t, void*, int64_t, bool, Stream) {
  no_kernels();
}

}  // namespace satune::cuda
