#include "tests/trainer/rank_threads.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
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

std::unique_ptr<ProcessGroup> group_of(const std::string& name, c10d::Store& store, const World& world) {
  if (world.size == 1) return make_local_group();
  const auto prefixed = c10::make_intrusive<c10d::PrefixStore>(
      name, c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(&store));
  return make_gloo_group(*prefixed, world, 60);
}

void connect(RankOfTest& rank, c10d::Store& store, int64_t shard_group_size) {
  const auto [number, count] = rank.world;
  const int64_t group = number / shard_group_size, share = number % shard_group_size;
  rank.all = group_of("all", store, rank.world);
  if (shard_group_size < count) {
    rank.shards = group_of(fmt::format("shards-{}", group), store, {share, shard_group_size});
  }
  rank.replicas = group_of(fmt::format("replicas-{}", share), store, {group, count / shard_group_size});
}

}  // namespace

void run_as_ranks(int64_t count, int64_t shard_group_size, const std::function<void(RankOfTest&)>& body) {
  const std::shared_ptr<RunStore> store = make_memory_store();
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int64_t r = 0; r < count; ++r) {
    threads.emplace_back([&, r] {
      RankOfTest rank;
      rank.world = {r, count};
      try {
        rank.coordinator = make_coordinator(
            environment_of(r, count), [] { return std::string(); }, CoordinatorOptions{},
            [&] { return store; },
            [](const RunFailed& failure) {
              std::fprintf(stderr, "%s\n", failure.what());
              std::abort();  // the test cannot be left while its threads hang
            });
        connect(rank, store->store(), shard_group_size == 0 ? count : shard_group_size);
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

void run_as_ranks(int64_t count, const std::function<void(RankOfTest&)>& body) {
  run_as_ranks(count, 0, body);
}

}  // namespace satune::trainer_test
