#include "trainer/rendezvous.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "data/files/error.h"
#include "trainer/c10d_messages.h"

namespace satune {
namespace {

constexpr const char* kCount = "arrived/count";
constexpr const char* kComplete = "arrived/all";

std::string arrival_key(int64_t rank) {
  return fmt::format("arrived/{}", rank);
}

std::vector<int64_t> missing_ranks(c10d::Store& store, const World& world) {
  std::vector<int64_t> missing;
  for (int64_t rank = 0; rank < world.size; ++rank) {
    if (!store.check({arrival_key(rank)})) missing.push_back(rank);
  }
  return missing;
}

}  // namespace

std::string name_ranks(const std::vector<int64_t>& ranks) {
  constexpr size_t kNamed = 8;
  std::string names = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < std::min(ranks.size(), kNamed); ++i) {
    names += fmt::format("{}{}", i == 0 ? "" : ", ", ranks[i]);
  }
  if (ranks.size() > kNamed) names += fmt::format(" and {} more", ranks.size() - kNamed);
  return names;
}

void meet(c10d::Store& store, const World& world, int64_t timeout_seconds) {
  try {
    store.set(arrival_key(world.rank), std::string("1"));
    // One key that all wait for: to wait for every rank's own would ask the server size() squared times.
    if (store.add(kCount, 1) == world.size) store.set(kComplete, std::string("1"));
    try {
      store.wait({kComplete}, std::chrono::seconds(timeout_seconds));
    } catch (const c10::DistStoreError&) {  // the time is up
      throw EnvironmentError(fmt::format("{} ranks were to meet within {} s: {} did not come", world.size,
                                         timeout_seconds, name_ranks(missing_ranks(store, world))));
    }
  } catch (const c10::Error& error) {
    throw EnvironmentError(
        fmt::format("{} ranks were to meet: the run's store failed: {}", world.size, one_line(error)));
  }
}

}  // namespace satune
