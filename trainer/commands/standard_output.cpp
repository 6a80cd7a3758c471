#include "trainer/commands/standard_output.h"

#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>

#include "data/files/error.h"

namespace satune {

void finish_standard_output() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw EnvironmentError(fmt::format("standard output: cannot be written{}{}", errno == 0 ? "" : ": ",
                                     errno == 0 ? "" : std::strerror(errno)));
}

void finish_after(const std::vector<std::function<void()>>& writes, const std::function<void()>& print) {
  std::signal(SIGPIPE, SIG_IGN);
  std::exception_ptr failure;
  const auto attempt = [&](const std::function<void()>& action) {
    try {
      action();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  };
  for (const std::function<void()>& write : writes) attempt(write);
  attempt([&] {
    print();
    finish_standard_output();
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace satune
