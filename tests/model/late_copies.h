// Copies between a device and the host that are made as late as they may be.
#pragma once

#include <ATen/ATen.h>

#include <deque>
#include <stdexcept>

#include "model/copy_queue.h"

namespace satune::testing {

/// A copy is made when somebody waits for it, or for a later one; what is read by then is what counts.
class LateCopies final : public CopyQueue {
 public:
  size_t copy(const at::Tensor& to, const at::Tensor& from) override {
    if (fail_after_ == 0) throw std::runtime_error("no copy");
    --fail_after_;
    to.fill_(0xEE);
    waiting_.push_back({to, from, made_ + waiting_.size()});
    return waiting_.back().number;
  }
  void wait_for(size_t number) override {
    if (number >= made_ + waiting_.size()) throw std::logic_error("waits for a copy that nobody asked for");
    while (!waiting_.empty() && waiting_.front().number <= number) {
      waiting_.front().to.copy_(waiting_.front().from);
      waiting_.pop_front();
      ++made_;
    }
  }
  void finish(size_t number) override { wait_for(number); }
  /// So many copies from here on are taken; the next one throws.
  void fail_after(int64_t copies) { fail_after_ = copies; }
  size_t waiting() const { return waiting_.size(); }
  size_t made() const { return made_; }

 private:
  struct Waiting {
    at::Tensor to, from;
    size_t number;
  };
  int64_t fail_after_ = -1;
  std::deque<Waiting> waiting_;
  size_t made_ = 0;
};

}  // namespace satune::testing
