// A wait for other ranks, with a name: it stands in this rank's heartbeat while it lasts, and when it fails
// the error says which rank is gone instead of what the transport saw.
#pragma once

#include <exception>
#include <utility>

#include "data/files/error.h"
#include "trainer/coordinator.h"

namespace satune {

/// Runs `call`, which starts or waits for the collective `what` (a string literal). Throws RunFailed naming
/// the rank that is gone, EnvironmentError when all are alive.
template <typename F>
decltype(auto) in_collective(Coordinator& coordinator, const char* what, F&& call) {
  try {
    const InCollective in(coordinator, what);
    return std::forward<F>(call)();
  } catch (const RunFailed&) {
    throw;
  } catch (const std::exception& error) {
    const std::string message = coordinator.explain(fmt::format("{}: {}", what, error.what()));
    if (const int code = coordinator.failure_code(); code != 0) throw RunFailed(message, code);
    throw EnvironmentError(message);
  }
}

}  // namespace satune
