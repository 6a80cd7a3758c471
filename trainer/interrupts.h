// Ctrl-C as something that a loop asks for, instead of the program's end.
#pragma once

#include <csignal>

#include "trainer/descriptor.h"

namespace satune {

/// As long as one lives (one at a time), SIGINT is remembered; the previous handling comes back after it. One
/// that comes before the last was taken ends the process as if no handler were there.
class Interrupts {
 public:
  /// Throws EnvironmentError when the process has no descriptor left.
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  /// Whether SIGINT came since the last call. Does not wait.
  bool take();
  /// Readable (POLLIN) while one waits to be taken.
  int descriptor() const { return read_.get(); }

 private:
  Descriptor read_, write_;
  struct sigaction previous_;
};

}  // namespace satune
