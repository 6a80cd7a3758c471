// A wait for other ranks, with a name: it stands in this rank's heartbeat while it lasts, and when it fails
// the error says which rank is gone instead of what the transport saw.
//
// On a card a collective's wait() only holds up the stream. What the host waits in is its next look at the
// card: a number read back, an upload from memory that is not pinned, an allocation that the card must make
// room for. Those are the waits to name there, beside starts and waits themselves.
#pragma once

#include <c10/core/Device.h>

#include <exception>
#include <optional>
#include <utility>

#include "data/files/error.h"
#include "trainer/c10d_messages.h"
#include "trainer/coordinator.h"

namespace satune {

/// Runs `call`, which starts or waits for the collective `what` (a string literal), or reads from a device
/// what stands behind collectives. Throws RunFailed naming the rank that is gone, EnvironmentError when all
/// are alive: what fails here waits until the watch knows which.
template <typename F>
decltype(auto) in_collective(Coordinator& coordinator, const char* what, F&& call) {
  try {
    const InCollective in(coordinator, what);
    return std::forward<F>(call)();
  } catch (const RunFailed&) {
    throw;
  } catch (const std::exception& error) {
    const std::string message = coordinator.explain(fmt::format("{}: {}", what, one_line(error)));
    if (const int code = coordinator.failure_code(); code != 0) throw RunFailed(message, code);
    throw EnvironmentError(message);
  }
}

/// Around work that the host queues on a card: in any of it the host may have to wait for the collectives
/// queued before. Nothing on the CPU, where a collective is over when wait() has returned. In a scope of its
/// own, in which nothing else is named.
class QueuedBehind {
 public:
  QueuedBehind(Coordinator& coordinator, const at::Device& device) {
    if (!device.is_cpu()) in_.emplace(coordinator, "work behind its collectives");
  }

 private:
  std::optional<InCollective> in_;
};

}  // namespace satune
