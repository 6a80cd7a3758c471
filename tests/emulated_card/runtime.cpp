// The CUDA runtime's entry points that LibTorch calls, over card.h. Programs' own definitions come before
// those of libcudart. What is missing here is answered with cudaErrorNotSupported, which LibTorch throws.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "tests/cuda_emulation/emulator.h"
#include "tests/emulated_card/card.h"

namespace satune::emulated_card {
namespace {

constexpr size_t kAlignment = 512;  // cudaMalloc's is at least 256

struct Block {
  size_t bytes;
  int card;  // -1: pinned memory of the host
};

struct Machine {
  std::map<const char*, Block> blocks;  // by first byte
  std::vector<size_t> used = std::vector<size_t>(static_cast<size_t>(cards()));
  std::vector<Stream*> streams;
  std::vector<Stream*> default_streams;
};

Machine& machine() {
  static auto* the_machine = [] {
    auto* made = new Machine;
    for (int card = 0; card < cards(); ++card) {
      made->default_streams.push_back(new Stream(/*is_default=*/true));
      made->streams.push_back(made->default_streams.back());
    }
    return made;
  }();
  return *the_machine;
}

thread_local int current_card = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) {
  last_error = error;
  return error;
}

/// What the host waited for, has it gone well?
cudaError_t outcome() {
  return take_failure() ? failed(cudaErrorLaunchFailure) : cudaSuccess;
}

const std::pair<const char* const, Block>* block_of(const void* pointer) {
  const std::lock_guard guard(lock());
  const auto* place = static_cast<const char*>(pointer);
  auto next = machine().blocks.upper_bound(place);
  if (next == machine().blocks.begin()) return nullptr;
  --next;
  return place < next->first + next->second.bytes ? &*next : nullptr;
}

cudaError_t allocate(void** pointer, size_t bytes, int card) {
  const std::lock_guard guard(lock());
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (card >= 0) {
    size_t& used = machine().used[static_cast<size_t>(card)];
    if (used + bytes > memory_bytes()) return failed(cudaErrorMemoryAllocation);
    used += bytes;
    ++counts().allocations;
  }
  const size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  *pointer = std::aligned_alloc(kAlignment, whole);
  std::memset(*pointer, 0xff, whole);
  machine().blocks[static_cast<const char*>(*pointer)] = {bytes, card};
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  const std::lock_guard guard(lock());
  const auto block = machine().blocks.find(static_cast<const char*>(pointer));
  if (block == machine().blocks.end()) return failed(cudaErrorInvalidValue);
  run_everything();  // as cudaFree, which waits for the card
  if (block->second.card >= 0) machine().used[static_cast<size_t>(block->second.card)] -= block->second.bytes;
  machine().blocks.erase(block);
  std::free(pointer);
  return cudaSuccess;
}

/// Copies out of memory of the host that is not pinned take their source at once; into it they wait.
cudaError_t copy(void* to, const void* from, size_t bytes, Stream& stream, bool waits) {
  const bool from_pageable = card_of_pointer(from) < 0 && !is_pinned(from);
  const bool to_pageable = card_of_pointer(to) < 0 && !is_pinned(to);
  if (from_pageable) {
    auto source = std::make_shared<std::vector<char>>(static_cast<const char*>(from),
                                                      static_cast<const char*>(from) + bytes);
    stream.submit([=] { std::memcpy(to, source->data(), bytes); });
  } else {
    stream.submit([=] { std::memmove(to, from, bytes); });
  }
  if (!waits && !to_pageable) return cudaSuccess;
  wait_for(stream, "copy");
  return outcome();
}

/// satune's kernels go where LibTorch's work goes.
const bool kernels_are_queued = [] {
  emulation::set_queue(
      [](void* stream, std::function<void()> work) { stream_of(stream).submit(std::move(work)); });
  return true;
}();

}  // namespace

Stream& stream_of(void* handle) {
  if (handle != nullptr) return *static_cast<Stream*>(handle);
  return *machine().default_streams[static_cast<size_t>(current_card)];
}

void run_everything() {
  const std::lock_guard guard(lock());
  for (Stream* stream : machine().streams) stream->run_all();
}

int card_of_pointer(const void* pointer) {
  const auto* block = block_of(pointer);
  return block == nullptr ? -1 : block->second.card;
}

bool is_pinned(const void* pointer) {
  const auto* block = block_of(pointer);
  return block != nullptr && block->second.card < 0;
}

}  // namespace satune::emulated_card

using satune::emulated_card::card_of_pointer;
using satune::emulated_card::copy;
using satune::emulated_card::current_card;
using satune::emulated_card::Event;
using satune::emulated_card::failed;
using satune::emulated_card::is_pinned;
using satune::emulated_card::last_error;
using satune::emulated_card::machine;
using satune::emulated_card::outcome;
using satune::emulated_card::Stream;
using satune::emulated_card::stream_of;
using satune::emulated_card::wait_for;

namespace {

Event& event_of(cudaEvent_t event) {
  return *reinterpret_cast<Event*>(event);
}

}  // namespace

extern "C" {

// Devices

cudaError_t cudaGetDeviceCount(int* count) {
  *count = satune::emulated_card::cards();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_card;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= satune::emulated_card::cards()) return failed(cudaErrorInvalidDevice);
  current_card = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= satune::emulated_card::cards()) return failed(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "emulated card");
  properties->major = 9;
  properties->minor = 0;
  properties->totalGlobalMem = satune::emulated_card::memory_bytes();
  properties->multiProcessorCount = 132;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = 227 << 10;
  properties->regsPerBlock = 65536;
  properties->l2CacheSize = 50 << 20;
  properties->pciDeviceID = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaDeviceSynchronize() {
  for (Stream* stream : machine().streams) wait_for(*stream, "cudaDeviceSynchronize");
  return outcome();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
  return failed(cudaErrorNotSupported);
}

// Errors

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}
const char* cudaGetErrorName(cudaError_t) {
  return "error of the emulated card";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotSupported:
      return "not supported by the emulated card";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "an error of the emulated card";
  }
}

// Memory

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return satune::emulated_card::allocate(pointer, bytes, current_card);
}
cudaError_t cudaFree(void* pointer) {
  return satune::emulated_card::release(pointer);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return satune::emulated_card::allocate(pointer, bytes, -1);
}
cudaError_t cudaFreeHost(void* pointer) {
  return satune::emulated_card::release(pointer);
}
cudaError_t cudaHostRegister(void*, size_t, unsigned) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaHostUnregister(void*) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaMallocAsync(void**, size_t, cudaStream_t) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaFreeAsync(void*, cudaStream_t) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard guard(satune::emulated_card::lock());
  *total = satune::emulated_card::memory_bytes();
  *free = *total - machine().used[static_cast<size_t>(current_card)];
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  const int card = card_of_pointer(pointer);
  attributes->type = card >= 0            ? cudaMemoryTypeDevice
                     : is_pinned(pointer) ? cudaMemoryTypeHost
                                          : cudaMemoryTypeUnregistered;
  attributes->device = std::max(card, 0);
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream_of(stream), false);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream_of(stream), false);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, stream_of(nullptr), true);
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  stream_of(stream).submit([=] { std::memset(pointer, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return cudaMemsetAsync(pointer, value, bytes, nullptr);
}

// Streams and events

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  const std::lock_guard guard(satune::emulated_card::lock());
  machine().streams.push_back(new Stream(/*is_default=*/false));
  *stream = reinterpret_cast<cudaStream_t>(machine().streams.back());
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const std::lock_guard guard(satune::emulated_card::lock());
  const Stream& stream = stream_of(handle);
  return stream.done(stream.submitted()) ? cudaSuccess : failed(cudaErrorNotReady);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  wait_for(stream_of(stream), "cudaStreamSynchronize");
  return outcome();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  event_of(event).block(stream_of(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t, cudaStreamCallback_t, void*, unsigned) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                     size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &event_of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event_of(event).record(stream_of(stream));
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard guard(satune::emulated_card::lock());
  if (!event_of(event).done()) satune::emulated_card::count_wait("cudaEventSynchronize");
  event_of(event).wait();
  return outcome();
}
/// Not yet, the first time; a thread that asks again gets what a card would have done by then.
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  const std::lock_guard guard(satune::emulated_card::lock());
  Event& event = event_of(handle);
  if (!event.done()) {
    if (!satune::emulated_card::submits_work() || !std::exchange(event.asked, true))
      return failed(cudaErrorNotReady);
    event.wait();
  }
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const std::lock_guard guard(satune::emulated_card::lock());
  const auto passed = event_of(end).time() - event_of(start).time();
  *milliseconds = std::chrono::duration<float, std::milli>(passed).count();
  return cudaSuccess;
}

// Kernels of the libraries: none runs here.

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return failed(cudaErrorNotSupported);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return failed(cudaErrorNotSupported);
}
// NOLINTNEXTLINE(bugprone-reserved-identifier): CUDA's name
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return failed(cudaErrorNotSupported);
}
// NOLINTNEXTLINE(bugprone-reserved-identifier)
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void*) {
  *kernel = nullptr;
  return cudaSuccess;
}
}
