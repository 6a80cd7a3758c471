#include "trainer/parent_death.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace satune {

bool started_by_launcher() {
  return std::getenv(kLauncherVariable) != nullptr;
}

void die_with_launcher() {
  const char* launcher = std::getenv(kLauncherVariable);
  if (launcher == nullptr) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // It may have ended before that took effect.
  if (::getppid() != std::strtol(launcher, nullptr, 10)) ::raise(SIGKILL);
  // Started as /proc/self/exe, the process would be listed as "exe".
  ::prctl(PR_SET_NAME, "satune");
}

}  // namespace satune
