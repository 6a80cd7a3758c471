#include "tests/trainer/rank_threads.h"

#include <exception>
#include <thread>
#include <vector>

#include "trainer/run_store.h"

namespace satune::trainer_test {
namespace {

RankEnvironment environment_of(int64_t rank, int64_t count) {
  RankEnvironment environment;
  environment.world = {rank, count};
  environment.local_rank = rank;
  environment.local_world_size = count;
  environment.launched = true;
  return environment;
}

}  // namespace

void run_as_ranks(int64_t count, const std::function<void(RankOfTest&)>& body) {
  const std::shared_ptr<RunStore> store = make_memory_store();
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int64_t r = 0; r < count; ++r) {
    threads.emplace_back([&, r] {
      RankOfTest rank{{r, count}, nullptr, nullptr};
      try {
        rank.coordinator = make_coordinator(
            environment_of(r, count), [] { return std::string(); }, CoordinatorOptions{},
            [&] { return store; },
            [](const std::string& message, int) { throw std::runtime_error(message); });
        rank.group = count == 1 ? make_local_group() : make_gloo_group(store->store(), rank.world, 60);
        body(rank);
        rank.coordinator->barrier("end of the test");
        rank.coordinator->leave();
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(r)] = std::current_exception();
        if (rank.coordinator) rank.coordinator->announce_failure(error.what(), 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace satune::trainer_test
