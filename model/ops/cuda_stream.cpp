#include "model/ops/cuda_stream.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAStream.h>

namespace satune::cuda {

Stream current_stream(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
}

int compute_capability(const at::Device& card) {
  const cudaDeviceProp* properties = at::cuda::getDeviceProperties(card.index());
  return 10 * properties->major + properties->minor;
}

int multiprocessors(const at::Device& card) {
  return at::cuda::getDeviceProperties(card.index())->multiProcessorCount;
}

}  // namespace satune::cuda
