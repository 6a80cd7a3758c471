// A CUDA card made of host memory, for the host code of the CUDA path where there is no card. Programs that
// link this folder find the emulation in place of the CUDA runtime's, NCCL's and ATen's kernels (runtime.cpp,
// nccl.cpp, aten.cpp, attention.cpp); satune's own kernels are those of tests/cuda_emulation. All else is
// what runs on a card: LibTorch's caching allocators, streams, events, ProcessGroupNCCL, and satune.
//
// Work is done as late as CUDA allows: when the host waits for it, and then only what the stream or event
// waited for depends on. So a result that is read before somebody waited for it, memory that is used again
// too early and a missing wait between streams show as wrong numbers. SATUNE_EMULATED_ORDER=early does
// everything at once instead, "ahead" what is on other streams than the default one, so that these run before
// work that they ought to wait for; a program that is right has the same bits with all three.
//
// Who asks an event twice, and submits work, has it done: allocators go around by that.
//
// New memory of the card is full of NaN. What is not found: what kernels of the real libraries refuse or
// round differently, and speed.
//
// Environment: SATUNE_EMULATED_CARDS (how many, 1), SATUNE_EMULATED_ORDER (late | early | ahead),
// SATUNE_EMULATED_MEMORY (bytes of a card, 4 GiB), SATUNE_EMULATED_SHOW_WAITS (1: names on standard error
// what the host waits for).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace satune::emulated_card {

/// Cards of this machine, and bytes of each.
int cards();
size_t memory_bytes();

/// Held while work is queued or done: by one host thread at a time.
std::recursive_mutex& lock();

/// One queue of a card, in which work is done one after another.
class Stream {
 public:
  explicit Stream(bool is_default);
  /// Does `work` when it is waited for, or at once (early).
  void submit(std::function<void()> work);
  /// Does what was submitted as number `last` and everything before.
  void run_until(uint64_t last);
  void run_all() { run_until(submitted_); }
  uint64_t submitted() const { return submitted_; }
  bool done(uint64_t number) const { return number <= done_; }

 private:
  std::deque<std::function<void()>> queue_;
  bool late_;
  uint64_t submitted_ = 0, done_ = 0;
  bool running_ = false;
};

/// The stream behind a cudaStream_t; null is the default stream of the current card.
Stream& stream_of(void* handle);
/// Of all cards.
void run_everything();

class Event {
 public:
  void record(Stream& stream);
  bool done() const { return stream_ == nullptr || stream_->done(number_); }
  void wait() const;
  /// Work of `stream` submitted from here on begins after this event.
  void block(Stream& stream) const;
  /// When the work before it was done; of an event that is done.
  std::chrono::steady_clock::time_point time() const {
    return time_ ? *time_ : std::chrono::steady_clock::now();
  }

  bool asked = false;  ///< whether a query has been answered with "not yet"

 private:
  Stream* stream_ = nullptr;
  uint64_t number_ = 0;
  std::shared_ptr<std::chrono::steady_clock::time_point> time_;
};

/// Whether `pointer` lies in memory of cudaMalloc (and of which card), or of cudaHostAlloc.
int card_of_pointer(const void* pointer);  // -1: of none
bool is_pinned(const void* pointer);

/// The stream on which ATen and satune work for the calling thread.
Stream& current_stream();

/// What the host has had to do with the cards so far.
struct Counts {
  int64_t waits = 0;        ///< until queued work was done
  int64_t allocations = 0;  ///< of memory of a card, from the runtime
};
Counts& counts();
/// The host waits for a stream, as cudaStreamSynchronize(). `reason`: who makes it.
void wait_for(Stream& stream, const char* reason);
/// Whether the calling thread has ever submitted work. Others, such as c10d's watch thread, only look on.
bool submits_work();
/// Counts a wait, and names it with SATUNE_EMULATED_SHOW_WAITS.
void count_wait(const char* reason);

/// The first exception of work that was done, given back once; null if there was none.
std::exception_ptr take_failure();

}  // namespace satune::emulated_card
