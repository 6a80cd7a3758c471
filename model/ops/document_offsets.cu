#include "model/ops/cuda_elements.cuh"

namespace satune::cuda {
namespace {

/// Thread i of slots + 1: where slot i begins.
__global__ void __launch_bounds__(kThreads)
    offsets_kernel(const int32_t* starts, int64_t documents, int64_t slots, RowStrides rows, int64_t pitch,
                   int64_t* offsets, int32_t* lengths) {
  const int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (slot > slots) return;
  const int64_t begin = starts[slot < documents ? slot : documents];
#pragma unroll
  for (int i = 0; i < RowStrides::kMost; ++i) {
    if (i < rows.count) offsets[i * pitch + slot] = begin * rows.elements[i];
  }
  if (slot == slots) return;
  lengths[slot] = slot < documents ? starts[slot + 1] - starts[slot] : 0;
}

}  // namespace

void document_offsets(const int32_t* starts, int64_t documents, int64_t slots, const RowStrides& rows,
                      int64_t* offsets, int32_t* lengths, Stream stream) {
  launch("document_offsets", offsets_kernel, dim3(static_cast<unsigned>(divide_up(slots + 1, kThreads))),
         kThreads, stream, starts, documents, slots, rows, offsets_pitch(slots), offsets, lengths);
}

}  // namespace satune::cuda
