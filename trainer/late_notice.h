// A line for whoever wonders why nothing happens: printed once a wait has lasted a while.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace satune {

/// Around a wait. Logs `text` once when it still lives after `delay`; its destructor returns at once.
class LateNotice {
 public:
  explicit LateNotice(std::string text, std::chrono::milliseconds delay = std::chrono::seconds(10));
  ~LateNotice();
  LateNotice(const LateNotice&) = delete;
  LateNotice& operator=(const LateNotice&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace satune
