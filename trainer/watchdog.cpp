#include "trainer/watchdog.h"

#include <fmt/format.h>

#include "trainer/lost_store.h"

namespace satune {

void run_watchdog(const RankEnvironment& environment, const CoordinatorOptions& options, RankStatus& status,
                  const EndProcess& end_process) noexcept {
  Silence store(options.lost_after);
  auto last = RankStatus::Clock::now();
  while (status.wait_for_tick()) {
    const auto now = RankStatus::Clock::now();
    store.look(status.answers(), std::chrono::duration<double>(now - last).count());
    last = now;
    if (store.too_long() && status.talks()) {
      status.learn(
          lost_store(environment, status.leader(),
                     fmt::format("the run's store at {}:{}: no answer for {:.3g} s",
                                 environment.master_address, environment.master_port, store.seconds())));
    }
    if (const auto overdue = status.take_overdue()) end_process(*overdue);
  }
}

}  // namespace satune
