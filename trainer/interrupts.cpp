#include "trainer/interrupts.h"

#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "data/files/error.h"

namespace satune {
namespace {

// What the handler may touch: lock-free atomics with the process's lifetime.
std::atomic<int> write_end{-1};
std::atomic<bool> waiting{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void on_interrupt(int signal) {
  if (waiting.exchange(true)) {
    std::signal(signal, SIG_DFL);
    raise(signal);  // takes effect when this handler returns
    return;
  }
  const int saved = errno;
  if (::write(write_end.load(), "", 1) < 0) waiting.store(true);  // full: there is one to take already
  errno = saved;
}

}  // namespace

Interrupts::Interrupts() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
    throw EnvironmentError(fmt::format("a pipe for Ctrl-C: {}", std::strerror(errno)));
  read_ = Descriptor(ends[0]);
  write_ = Descriptor(ends[1]);
  write_end.store(write_.get());
  waiting.store(false);
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &previous_);
}

Interrupts::~Interrupts() {
  sigaction(SIGINT, &previous_, nullptr);
}

bool Interrupts::take() {
  char byte;
  bool any = false;
  while (::read(read_.get(), &byte, 1) == 1) any = true;
  if (any) waiting.store(false);
  return any;
}

}  // namespace satune
