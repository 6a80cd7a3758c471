#include "tests/emulated_card/card.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <utility>

namespace satune::emulated_card {
namespace {

bool works_late() {
  static const bool late = [] {
    const char* order = std::getenv("SATUNE_EMULATED_ORDER");
    return order == nullptr || std::string_view(order) != "early";
  }();
  return late;
}

int64_t number_from(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoll(text);
}

std::exception_ptr& failure() {
  static std::exception_ptr first;
  return first;
}

}  // namespace

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

void Stream::submit(std::function<void()> work) {
  const std::lock_guard guard(lock());
  queue_.push_back(std::move(work));
  ++submitted_;
  if (!works_late()) run_all();
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

std::exception_ptr take_failure() {
  const std::lock_guard guard(lock());
  return std::exchange(failure(), nullptr);
}

}  // namespace satune::emulated_card
