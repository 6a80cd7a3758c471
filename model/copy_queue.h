// Copies between a card and the host that run beside the work on the card, and how the two wait for each
// other.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "model/step_trace.h"

namespace satune {

/// Copies run one after another, in the order in which they were asked for.
class CopyQueue {
 public:
  virtual ~CopyQueue() = default;

  /// `to` becomes `from` once all work that was queued on the device before this call is done. Both of one
  /// type and size, contiguous, the host's side pinned; both stay alive until wait_for() or finish(). Returns
  /// the copy's number.
  virtual size_t copy(const at::Tensor& to, const at::Tensor& from) = 0;
  /// Work queued on the device from here on runs after that copy.
  virtual void wait_for(size_t copy) = 0;
  /// The host waits until that copy is done.
  virtual void finish(size_t copy) = 0;

  /// Copies asked for from here on are journeys of that name (StepTrace). nullptr: nobody is told.
  void tell(StepTrace* trace, const char* name, int64_t number) { told_ = {trace, name, number}; }

 protected:
  struct Told {
    StepTrace* trace = nullptr;
    const char* name = "";
    int64_t number = -1;
  };
  Told told_;
};

/// Beside LibTorch's current stream of `device`, a card, on a stream of its own.
std::unique_ptr<CopyQueue> make_copy_queue(at::Device device);

}  // namespace satune
