#include "trainer/late_notice.h"

#include <spdlog/spdlog.h>

namespace satune {

LateNotice::LateNotice(std::string text, std::chrono::milliseconds delay)
    : thread_([this, text = std::move(text), delay] {
        std::unique_lock lock(mutex_);
        if (!ended_.wait_for(lock, delay, [this] { return over_; })) spdlog::warn("{}", text);
      }) {}

LateNotice::~LateNotice() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  ended_.notify_one();
  thread_.join();
}

}  // namespace satune
