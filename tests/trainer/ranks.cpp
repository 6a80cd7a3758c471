#include "tests/trainer/ranks.h"

#include <csignal>
#include <exception>
#include <thread>

namespace satune::trainer_test {

std::vector<std::string> run_ranks(int64_t size, const std::function<void(const World&)>& rank) {
  std::vector<std::string> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < size; ++i) {
    threads.emplace_back([&, i] {
      try {
        rank({i, size});
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(i)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

std::vector<std::string> run_gloo(int64_t size, const std::function<void(ProcessGroup&)>& rank,
                                  int64_t timeout_seconds) {
  const auto store = make_memory_store();
  // As in a run: what Gloo writes to a rank that has left is an error, and no end of the process.
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  auto errors = run_ranks(size, [&](const World& world) {
    const auto group = make_gloo_group(store->store(), world, timeout_seconds, "127.0.0.1");
    try {
      rank(*group);
    } catch (...) {
      group->abort();
      throw;
    }
  });
  std::signal(SIGPIPE, before);
  return errors;
}

}  // namespace satune::trainer_test
