// Runs CUDA kernels on the CPU, so that their arithmetic and their barriers are tested where there is no
// card. The .cu files themselves are compiled as C++ (the headers of CUDA that they include are stand-ins
// from this folder). Each CUDA thread is a fiber that runs until it waits; blocks run one after another.
//
// What is found this way: wrong results; threads of a block that part ways at a barrier or a shuffle, or that
// end while others wait (an error that names both places); a missing barrier (results that depend on the
// order in which the fibers run: see Order); access outside a buffer and misaligned vector access (under ASan
// and UBSan). What is not: the order of memory operations of a real card, and its rounding in approximate
// functions.
//
// For one host thread at a time.
#pragma once

#include <cstdint>
#include <functional>

namespace satune::emulation {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/// Who runs first while nobody has to wait: one warp after another, each as far as the next barrier, or all
/// threads by turns that change. A kernel's results must not show it.
enum class Order { kAscending, kDescending, kShuffled };
void set_order(Order order);

/// Calls `body` once for each thread of each block, as a kernel that was launched on that grid. Throws
/// std::runtime_error for what a card would hang on or leave undefined.
void run(const char* kernel, const Dim& blocks, const Dim& threads, const std::function<void()>& body);

/// As run(), where `stream` gets to it: at once, unless set_queue() has been told of a place for work.
void launch(const char* kernel, const Dim& blocks, const Dim& threads, void* stream,
            std::function<void()> body);
using Queue = std::function<void(void* stream, std::function<void()> work)>;
void set_queue(Queue queue);

// What the current thread of the current block calls. `file` and `line`: where it waits.

/// Waits for all threads of the block.
void barrier(const char* file, int line);
/// Gives the bits of a value to the other lanes named in `mask`, and returns those of `source_lane`.
uint64_t exchange(unsigned mask, uint64_t bits, unsigned source_lane, const char* file, int line);
unsigned lane();

/// Bytes that kernels have moved through the accessors of model/ops/cuda_elements.cuh, and their launches.
struct Traffic {
  int64_t read = 0, written = 0, launches = 0;
};
Traffic& traffic();

}  // namespace satune::emulation
