#include "model/copy_queue.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <deque>

namespace satune {
namespace {

class StreamOfCopies final : public CopyQueue {
 public:
  explicit StreamOfCopies(at::Device device)
      : device_(device),
        guard_(device.type()),
        copies_(guard_.getStreamFromGlobalPool(device)),
        work_done_(device.type()) {}

  size_t copy(const at::Tensor& to, const at::Tensor& from) override {
    work_done_.record(guard_.getStream(device_));
    work_done_.block(copies_);
    {
      const c10::StreamGuard on_copies(copies_);
      StepTrace* trace = told_.trace;
      const size_t journey = trace != nullptr ? trace->depart(told_.name, told_.number) : 0;
      to.copy_(from, /*non_blocking=*/true);
      if (trace != nullptr) trace->arrive(journey);
    }
    // Numbers go around: an event serves again only after so many later copies of this queue, and nobody
    // waits for one as old as that.
    const size_t number = next_++ % kEvents;
    if (number == events_.size()) events_.emplace_back(device_.type());
    events_[number].record(copies_);
    return number;
  }

  void wait_for(size_t copy) override { events_[copy].block(guard_.getStream(device_)); }
  void finish(size_t copy) override { events_[copy].synchronize(); }

 private:
  static constexpr size_t kEvents = 256;  // more than the copies of three layers, or of two pieces of state

  at::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  c10::Stream copies_;
  c10::Event work_done_;
  std::deque<c10::Event> events_;
  size_t next_ = 0;
};

}  // namespace

std::unique_ptr<CopyQueue> make_copy_queue(at::Device device) {
  return std::make_unique<StreamOfCopies>(device);
}

}  // namespace satune
