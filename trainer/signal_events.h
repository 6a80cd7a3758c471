// Signals as events of a poll loop instead of handlers.
#pragma once

#include <csignal>
#include <vector>

#include "trainer/descriptor.h"

namespace satune {

/// As long as it lives, `signals` are blocked in this thread and in threads started after it, and wait to be
/// taken. Make it before any thread: one that does not block a signal would receive it instead.
class SignalEvents {
 public:
  /// Throws EnvironmentError when the process has no descriptor left.
  explicit SignalEvents(const std::vector<int>& signals);
  ~SignalEvents();
  SignalEvents(const SignalEvents&) = delete;
  SignalEvents& operator=(const SignalEvents&) = delete;

  /// Readable (POLLIN) while a signal waits.
  int descriptor() const { return descriptor_.get(); }
  /// Those that came since the last call. Does not wait. Of a signal that came twice in between there is one.
  std::vector<int> take();
  /// What was blocked before: the mask for processes started meanwhile.
  const sigset_t& previous_mask() const { return previous_mask_; }

 private:
  sigset_t previous_mask_;
  Descriptor descriptor_;
};

}  // namespace satune
