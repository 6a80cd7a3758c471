#include "tests/emulated_card/card.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <utility>

namespace satune::emulated_card {
namespace {

std::string_view order() {
  static const char* text = std::getenv("SATUNE_EMULATED_ORDER");
  return text == nullptr ? "late" : text;
}

int64_t number_from(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoll(text);
}

std::exception_ptr& failure() {
  static std::exception_ptr first;
  return first;
}

thread_local bool has_submitted = false;

}  // namespace

bool submits_work() {
  return has_submitted;
}

int cards() {
  static const int count = static_cast<int>(number_from("SATUNE_EMULATED_CARDS", 1));
  return count;
}

size_t memory_bytes() {
  static const auto bytes = static_cast<size_t>(number_from("SATUNE_EMULATED_MEMORY", int64_t{4} << 30));
  return bytes;
}

std::recursive_mutex& lock() {
  static auto* mutex = new std::recursive_mutex;  // threads of c10d outlive static objects
  return *mutex;
}

Stream::Stream(bool is_default) : late_(order() == "late" || (order() == "ahead" && is_default)) {}

void Stream::submit(std::function<void()> work) {
  has_submitted = true;
  const std::lock_guard guard(lock());
  queue_.push_back(std::move(work));
  ++submitted_;
  if (!late_) run_all();
}

void Stream::run_until(uint64_t last) {
  const std::lock_guard guard(lock());
  if (running_) return;  // work that ends up waiting for its own stream, as an allocator does
  running_ = true;
  while (done_ < last) {
    const std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    try {
      work();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "emulated card: %s\n", error.what());
      if (!failure()) failure() = std::current_exception();
    }
    ++done_;
  }
  running_ = false;
}

void Event::record(Stream& stream) {
  const std::lock_guard guard(lock());
  time_ = std::make_shared<std::chrono::steady_clock::time_point>();
  stream.submit([time = time_] { *time = std::chrono::steady_clock::now(); });
  stream_ = &stream;
  number_ = stream.submitted();
  asked = false;
}

void Event::wait() const {
  if (stream_ != nullptr) stream_->run_until(number_);
}

void Event::block(Stream& stream) const {
  if (stream_ == nullptr || stream_ == &stream) return;
  stream.submit([of = stream_, number = number_] { of->run_until(number); });
}

Counts& counts() {
  static Counts of_the_process;
  return of_the_process;
}

void count_wait(const char* reason) {
  static const bool shown = std::getenv("SATUNE_EMULATED_SHOW_WAITS") != nullptr;
  ++counts().waits;
  if (shown) std::fprintf(stderr, "emulated card: the host waits: %s\n", reason);
}

void wait_for(Stream& stream, const char* reason) {
  const std::lock_guard guard(lock());
  if (!stream.done(stream.submitted())) count_wait(reason);
  stream.run_all();
}

std::exception_ptr take_failure() {
  const std::lock_guard guard(lock());
  return std::exchange(failure(), nullptr);
}

}  // namespace satune::emulated_card
