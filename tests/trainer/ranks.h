// Ranks as threads of one process.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trainer/process_group.h"
#include "trainer/run_store.h"

namespace satune::trainer_test {

/// Runs `rank(world)` on a thread for each rank and waits for all. Returns what each threw: its message, ""
/// for nothing.
std::vector<std::string> run_ranks(int64_t size, const std::function<void(const World&)>& rank);

/// The same over Gloo groups on 127.0.0.1 that met in one memory store. An exception that leaves a rank
/// aborts its group.
std::vector<std::string> run_gloo(int64_t size, const std::function<void(ProcessGroup&)>& rank,
                                  int64_t timeout_seconds = 60);

}  // namespace satune::trainer_test
