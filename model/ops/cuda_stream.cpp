#include "model/ops/cuda_stream.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAStream.h>

namespace satune::cuda {

Stream current_stream(const at::Tensor& tensor) {
  return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
}

int compute_capability(const at::Tensor& tensor) {
  const cudaDeviceProp* card = at::cuda::getDeviceProperties(tensor.device().index());
  return 10 * card->major + card->minor;
}

int multiprocessors(const at::Tensor& tensor) {
  return at::cuda::getDeviceProperties(tensor.device().index())->multiProcessorCount;
}

}  // namespace satune::cuda
