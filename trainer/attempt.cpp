#include "trainer/attempt.h"

#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "data/files/error.h"
#include "trainer/rendezvous.h"
#include "trainer/run_store.h"

namespace satune {
namespace {

using Clock = std::chrono::steady_clock;

// Rank 0 of each attempt announces a token of its own and confirms it when all others have come to it. What a
// dead rank 0 has left is told from it: a rank comes to one token once, so that one where it has been before
// is old, and one that was not confirmed before never will be.
constexpr const char* kAnnounced = "attempt";
std::string count_of(const std::string& token) {
  return token + "/count";
}
std::string confirmed(const std::string& token) {
  return token + "/all";
}
std::string arrived(const std::string& token, int64_t rank) {
  return fmt::format("{}/{}", token, rank);
}

/// Pauses that grow, so that thousands of ranks may poll one server.
class Polling {
 public:
  explicit Polling(std::chrono::seconds timeout) : deadline_(Clock::now() + timeout) {}
  /// Sleeps; false when the time is up.
  bool pause() {
    if (Clock::now() >= deadline_) return false;
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(pause_ * 3 / 2, std::chrono::milliseconds(500));
    return true;
  }

 private:
  Clock::time_point deadline_;
  std::chrono::milliseconds pause_{10};
};

[[noreturn]] void fail(RunStore& store, const World& world, const std::string& token,
                       std::chrono::seconds timeout) {
  std::vector<int64_t> missing;
  for (int64_t rank = 1; rank < world.size && !token.empty(); ++rank) {
    if (!store.get(arrived(token, rank))) missing.push_back(rank);
  }
  // Without an announcement, or where nobody else is missing, it is the one that confirms.
  if (missing.empty()) missing.push_back(0);
  throw EnvironmentError(fmt::format("{} ranks were to meet within {} s: {} did not come", world.size,
                                     timeout.count(), name_ranks(missing)));
}

std::string lead(RunStore& store, const World& world, std::chrono::seconds timeout) {
  std::random_device random;
  const std::string token = fmt::format("{:08x}{:08x}", random(), random());
  store.set(kAnnounced, token);
  Polling polling(timeout);
  while (store.add(count_of(token), 0) < world.size - 1) {
    if (!polling.pause()) fail(store, world, token, timeout);
  }
  store.set(confirmed(token), "");
  return token;
}

std::string follow(RunStore& store, const World& world, std::chrono::seconds timeout) {
  std::string token;
  bool first_time = false;
  Polling polling(timeout);
  do {
    const auto announced = store.get(kAnnounced);
    if (announced && *announced != token) {
      token = *announced;
      first_time = store.add(arrived(token, world.rank), 1) == 1;
      if (first_time) store.add(count_of(token), 1);
    }
    if (first_time && store.get(confirmed(token))) return token;
  } while (polling.pause());
  fail(store, world, first_time ? token : "", timeout);
}

}  // namespace

RankEnvironment agree_on_attempt(RankEnvironment environment, std::chrono::seconds timeout) {
  if (!environment.agent_store) return environment;
  environment.attempt = "agreement";  // keys that all attempts share
  const auto store = connect_store(environment, timeout);
  environment.attempt = environment.world.rank == 0 ? lead(*store, environment.world, timeout)
                                                    : follow(*store, environment.world, timeout);
  return environment;
}

}  // namespace satune
