// Between the frontend and cuDNN, and in the place of the CUDA runtime: what would run is written down
// instead. Everything else is cuDNN's own, which this library is linked to.
#include "tests/cudnn/recorder.h"

#include <cudnn.h>
#include <dlfcn.h>

#include <utility>

namespace satune::cudnn_recorder {
namespace {

std::vector<Run> runs;
std::vector<Fill> fills;

// Of the variant pack that was described last.
std::vector<int64_t> names;
std::vector<void*> pointers;
void* workspace = nullptr;

template <typename T>
std::vector<T> copied(const void* values, int64_t count) {
  const auto* first = static_cast<const T*>(values);
  return {first, first + count};
}

}  // namespace

std::vector<Run> take_runs() {
  return std::exchange(runs, {});
}

std::vector<Fill> take_fills() {
  return std::exchange(fills, {});
}

}  // namespace satune::cudnn_recorder

extern "C" {

cudnnStatus_t cudnnGetStream(cudnnHandle_t, cudaStream_t* stream) {
  *stream = nullptr;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  using namespace satune::cudnn_recorder;
  if (name == CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS) names = copied<int64_t>(values, count);
  if (name == CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS) pointers = copied<void*>(values, count);
  if (name == CUDNN_ATTR_VARIANT_PACK_WORKSPACE) workspace = copied<void*>(values, 1)[0];
  static const auto next =
      reinterpret_cast<decltype(&cudnnBackendSetAttribute)>(dlsym(RTLD_NEXT, "cudnnBackendSetAttribute"));
  return next(descriptor, name, type, count, values);
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
  using namespace satune::cudnn_recorder;
  Run run;
  for (size_t i = 0; i < names.size(); ++i) run.addresses[names[i]] = pointers.at(i);
  run.workspace = workspace;
  runs.push_back(run);
  return CUDNN_STATUS_SUCCESS;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                     size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  satune::cudnn_recorder::fills.push_back({to, value, bytes});
  return cudaSuccess;
}
}
