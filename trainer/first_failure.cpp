#include "trainer/first_failure.h"

#include <chrono>
#include <thread>

#include "trainer/run_store.h"

namespace satune {

std::optional<RunFailure> read_failure(RunStore& store) {
  const auto text = store.get(kFailureKey);
  return text ? std::optional(decode_failure(*text)) : std::nullopt;
}

RunFailure announce_first(RunStore& store, const RunFailure& failure) {
  if (store.add("failure/tickets", 1) > 1) {
    // Between ticket and record the first one may have died: then this record takes its place.
    constexpr int kTries = 50;
    for (int i = 0; i < kTries; ++i) {
      if (const auto first = read_failure(store)) return *first;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  store.set(kFailureKey, encode(failure));
  return failure;
}

}  // namespace satune
