// A wait for other ranks, with a name: it stands in this rank's heartbeat while it lasts, and when it fails
// the error says which rank is gone instead of what the transport saw.
//
// On a card a collective's wait() only holds up the stream. What the host waits in is its next look at the
// card: a number read back, a gradient that it updates by, an upload from memory that is not pinned, an
// allocation (of the card's memory or of pinned memory) that has to wait for it. Those are the waits to name
// there, beside starts and waits themselves.
#pragma once

#include <c10/core/Device.h>

#include <exception>
#include <optional>
#include <stdexcept>
#include <utility>

#include "data/files/error.h"
#include "trainer/c10d_messages.h"
#include "trainer/coordinator.h"
#include "trainer/failure_report.h"

namespace satune {

/// Runs `call`, which starts or waits for the collective `what` (a string literal), or reads from a device
/// what stands behind collectives. What fails here waits until the watch knows whether a rank is gone: then
/// throws RunFailed naming it. When all are alive, EnvironmentError for what comes_from_outside(), and
/// std::runtime_error for a defect of ours. BadInput and memory that ran out are this rank's own affair, and
/// pass at once as they are.
template <typename F>
decltype(auto) in_collective(Coordinator& coordinator, const char* what, F&& call) {
  try {
    const InCollective in(coordinator, what);
    const TracedPart part(coordinator.trace(), what);
    return std::forward<F>(call)();
  } catch (const RunFailed&) {
    throw;
  } catch (const BadInput&) {
    throw;
  } catch (const std::exception& error) {
    if (out_of_memory()) throw;
    const std::string message = coordinator.explain(fmt::format("{}: {}", what, one_line(error)));
    if (const int code = coordinator.failure_code(); code != 0) throw RunFailed(message, code);
    if (comes_from_outside(error)) throw EnvironmentError(message);
    throw std::runtime_error(message);
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
