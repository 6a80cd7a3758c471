#include "trainer/commands/standard_output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "data/files/error.h"

namespace satune {

void finish_standard_output() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw EnvironmentError(fmt::format("standard output: cannot be written{}{}", errno == 0 ? "" : ": ",
                                     errno == 0 ? "" : std::strerror(errno)));
}

}  // namespace satune
