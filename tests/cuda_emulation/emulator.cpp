// Jumps between stacks are not what the checks of fortified builds expect.
#undef _FORTIFY_SOURCE

#include "tests/cuda_emulation/emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/cuda_emulation/cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace satune::emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;  // of which only what is touched takes memory

enum class State { kReady, kAtBarrier, kAtExchange, kEnded };

/// Where to go on. Jumps are a hundred times as fast as swapcontext(), which asks the kernel for the signal
/// mask each time, but they cannot begin on a new stack, and ASan does not follow them from one to another.
struct Context {
  ucontext_t whole{};
  jmp_buf jump;
  bool begun = false;
};

void transfer(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&from.whole, &to.whole);
#else
  from.begun = true;
  if (_setjmp(from.jump) != 0) return;
  if (to.begun) _longjmp(to.jump, 1);
  setcontext(&to.whole);
#endif
}

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  void* sanitizer_stack = nullptr;
  State state = State::kReady;
  unsigned index = 0;
  const char* file = nullptr;  ///< where it waits
  int line = 0;
  unsigned mask = 0, source_lane = 0;
  uint64_t given = 0, received = 0;
};

class Block {
 public:
  void run(const char* kernel, const Dim& threads, const std::function<void()>& body, Order order);

  Fiber& current() { return *current_; }
  void wait(State state, const char* file, int line) {
    current_->state = state;
    current_->file = file;
    current_->line = line;
    switch_to_scheduler();
  }

 private:
  static void enter();
  void start(Fiber& fiber);
  void resume(Fiber& fiber);
  void switch_to_scheduler();
  bool run_ready(const std::vector<unsigned>& turns);
  bool release_warps(unsigned begin, unsigned end);
  bool exchange_is_complete(const Fiber& fiber, unsigned first) const;
  void release_barrier();
  std::string place(const Fiber& fiber) const;

  std::string kernel_;
  unsigned count_ = 0;
  std::deque<Fiber> fibers_;  // a context must stay where it is
  Fiber* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr failure_;
  Context scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  void* scheduler_sanitizer_stack_ = nullptr;
};

Queue& current_queue() {
  static Queue queue;
  return queue;
}

Block& block() {
  static Block the_block;
  return the_block;
}

Order& current_order() {
  static Order order = Order::kAscending;
  return order;
}

/// One thread after another: a fiber whose thread has ended takes the same one of the next block.
void Block::enter() {
  Block& self = block();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_bytes_);
#endif
  while (true) {
    try {
      (*self.body_)();
    } catch (...) {
      self.failure_ = std::current_exception();
    }
    self.current_->state = State::kEnded;
    self.switch_to_scheduler();
  }
}

void Block::start(Fiber& fiber) {
  const bool waits_for_work = fiber.stack && fiber.state == State::kEnded;
  fiber.state = State::kReady;
  if (waits_for_work) return;
  if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
  getcontext(&fiber.context.whole);
  fiber.context.whole.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.whole.uc_stack.ss_size = kStackBytes;
  fiber.context.whole.uc_link = nullptr;
  makecontext(&fiber.context.whole, &Block::enter, 0);
  fiber.context.begun = false;
}

void Block::resume(Fiber& fiber) {
  current_ = &fiber;
  threadIdx = Dim(fiber.index, 0, 0);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_sanitizer_stack_, fiber.stack.get(), kStackBytes);
#endif
  transfer(scheduler_, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_sanitizer_stack_, nullptr, nullptr);
#endif
}

void Block::switch_to_scheduler() {
  Fiber& fiber = *current_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.sanitizer_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
  transfer(fiber.context, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.sanitizer_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

std::string Block::place(const Fiber& fiber) const {
  const std::string thread = "thread " + std::to_string(fiber.index);
  if (fiber.state == State::kEnded) return thread + " has ended";
  return thread + " waits at " + fiber.file + ":" + std::to_string(fiber.line);
}

/// Whether every lane that the mask names waits at the same exchange.
bool Block::exchange_is_complete(const Fiber& fiber, unsigned first) const {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((fiber.mask >> lane & 1) == 0) continue;
    const unsigned index = first + lane;
    if (index >= count_) {
      throw std::runtime_error(kernel_ +
                               ": a mask names lanes that the block does not have: " + place(fiber));
    }
    const Fiber& other = fibers_[index];
    if (other.state != State::kAtExchange || other.line != fiber.line || other.file != fiber.file ||
        other.mask != fiber.mask) {
      return false;
    }
  }
  return true;
}

/// Of threads [begin, end), whole warps.
bool Block::release_warps(unsigned begin, unsigned end) {
  bool released = false;
  for (unsigned index = begin; index < end; ++index) {
    if (fibers_[index].state != State::kAtExchange) continue;
    const unsigned first = index / kWarp * kWarp, mask = fibers_[index].mask;
    if (!exchange_is_complete(fibers_[index], first)) continue;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      Fiber& fiber = fibers_[first + lane];
      if ((mask >> fiber.source_lane & 1) == 0) {
        throw std::runtime_error(kernel_ + ": a lane reads from one outside of the mask: " + place(fiber));
      }
      fiber.received = fibers_[first + fiber.source_lane].given;
      fiber.state = State::kReady;
    }
    released = true;
  }
  return released;
}

void Block::release_barrier() {
  const Fiber* first = &fibers_[0];
  for (unsigned index = 1; index < count_ && first->state == State::kEnded; ++index) first = &fibers_[index];
  const Fiber* apart = first->state == State::kAtBarrier ? nullptr : first;
  for (unsigned index = 0; index < count_; ++index) {
    const Fiber& other = fibers_[index];
    if (other.state != first->state || other.line != first->line || other.file != first->file) apart = &other;
  }
  if (apart != nullptr) {
    throw std::runtime_error(kernel_ + ": threads part ways: " + place(*first) + ", " + place(*apart));
  }
  for (unsigned index = 0; index < count_; ++index) fibers_[index].state = State::kReady;
}

bool Block::run_ready(const std::vector<unsigned>& turns) {
  bool ran = false;
  for (const unsigned index : turns) {
    if (fibers_[index].state != State::kReady) continue;
    resume(fibers_[index]);
    if (failure_) std::rethrow_exception(failure_);
    ran = true;
  }
  return ran;
}

void Block::run(const char* kernel, const Dim& threads, const std::function<void()>& body, Order order) {
  if (threads.y != 1 || threads.z != 1) throw std::runtime_error("only blocks of one dimension are emulated");
  kernel_ = kernel;
  count_ = threads.x;
  body_ = &body;
  failure_ = nullptr;
  if (fibers_.size() < count_) fibers_.resize(count_);
  for (unsigned index = 0; index < count_; ++index) {
    fibers_[index].index = index;
    start(fibers_[index]);
  }
  // Turns of each warp, or of all threads together.
  const bool together = order == Order::kShuffled;
  std::vector<std::vector<unsigned>> groups;
  for (unsigned begin = 0; begin < count_; begin += kWarp) {
    if (!together || groups.empty()) groups.emplace_back();
    for (unsigned index = begin; index < std::min(count_, begin + kWarp); ++index)
      groups.back().push_back(index);
  }
  if (order == Order::kDescending) {
    std::reverse(groups.begin(), groups.end());
    for (auto& turns : groups) std::reverse(turns.begin(), turns.end());
  }
  std::minstd_rand random(count_);
  const auto ended = [&](const Fiber& fiber) { return fiber.state == State::kEnded; };
  while (!std::all_of(fibers_.begin(), fibers_.begin() + count_, ended)) {
    bool ran = false;
    for (auto& turns : groups) {
      if (together) std::shuffle(turns.begin(), turns.end(), random);
      const unsigned begin = *std::min_element(turns.begin(), turns.end());
      while (run_ready(turns) || release_warps(begin, begin + static_cast<unsigned>(turns.size())))
        ran = true;
    }
    if (!ran) release_barrier();
  }
}

}  // namespace

void set_order(Order order) {
  current_order() = order;
}

void run(const char* kernel, const Dim& blocks, const Dim& threads, const std::function<void()>& body) {
  if (threads.x == 0 || threads.x > 1024 || blocks.x == 0 || blocks.x > 0x7fffffffU || blocks.y == 0 ||
      blocks.y > 65535 || blocks.z == 0 || blocks.z > 65535) {
    throw std::runtime_error(
        std::string(kernel) + ": a grid that no card takes: " + std::to_string(blocks.x) + " x " +
        std::to_string(blocks.y) + " blocks of " + std::to_string(threads.x) + " threads");
  }
  ++traffic().launches;
  gridDim = blocks;
  blockDim = threads;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = Dim(x, y, z);
        block().run(kernel, threads, body, current_order());
      }
    }
  }
}

void launch(const char* kernel, const Dim& blocks, const Dim& threads, void* stream,
            std::function<void()> body) {
  if (!current_queue()) return run(kernel, blocks, threads, body);
  current_queue()(stream, [=, body = std::move(body)] { run(kernel, blocks, threads, body); });
}

void set_queue(Queue queue) {
  current_queue() = std::move(queue);
}

void barrier(const char* file, int line) {
  block().wait(State::kAtBarrier, file, line);
}

uint64_t exchange(unsigned mask, uint64_t bits, unsigned source_lane, const char* file, int line) {
  Fiber& fiber = block().current();
  if ((mask >> lane() & 1) == 0) throw std::runtime_error("a lane at an exchange whose mask leaves it out");
  fiber.mask = mask;
  fiber.given = bits;
  fiber.source_lane = source_lane;
  block().wait(State::kAtExchange, file, line);
  return fiber.received;
}

unsigned lane() {
  return block().current().index % kWarp;
}

Traffic& traffic() {
  static Traffic the_traffic;
  return the_traffic;
}

}  // namespace satune::emulation
