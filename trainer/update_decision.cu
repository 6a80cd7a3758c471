#include "model/ops/cuda_elements.cuh"
#include "trainer/cuda_kernels.h"

namespace satune::cuda {
namespace {

/// One thread: a few numbers a rank, added in the order of the host.
__global__ void decision_kernel(StepNumbers step, float* scale) {
  *scale = gradient_scale(sum_up(step), step);
}

}  // namespace

void decide_update(const StepNumbers& step, float* scale, Stream stream) {
  launch("decide_update", decision_kernel, dim3(1), 1, stream, step, scale);
}

}  // namespace satune::cuda
