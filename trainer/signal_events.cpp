#include "trainer/signal_events.h"

#include <sys/signalfd.h>

#include <cerrno>
#include <cstring>

#include "data/files/error.h"

namespace satune {

SignalEvents::SignalEvents(const std::vector<int>& signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  descriptor_ = Descriptor(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!descriptor_.is_open()) {
    throw EnvironmentError(fmt::format("signalfd: {}", std::strerror(errno)));
  }
  pthread_sigmask(SIG_BLOCK, &set, &previous_mask_);
}

SignalEvents::~SignalEvents() {
  pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
}

std::vector<int> SignalEvents::take() {
  std::vector<int> taken;
  signalfd_siginfo info;
  while (::read(descriptor_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    taken.push_back(static_cast<int>(info.ssi_signo));
  }
  return taken;
}

}  // namespace satune
