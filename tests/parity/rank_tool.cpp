// One rank as torchrun starts it; the contract is in test_torchrun.py.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/files/json.h"
#include "trainer/attempt.h"
#include "trainer/network_address.h"
#include "trainer/process_group.h"
#include "trainer/rank_error_file.h"
#include "trainer/run_store.h"

namespace satune {
namespace {

struct Options {
  std::string output, fail;
  int64_t failing_rank = -1, failing_attempt = 0;
};

void run_rank(const RankEnvironment& given, const Options& options) {
  constexpr std::chrono::seconds kTimeout(60);
  const RankEnvironment environment = agree_on_attempt(given, kTimeout);
  const World world = environment.world;
  const auto store = connect_store(environment, kTimeout);
  const std::string mark = "mark of " + std::to_string(world.rank);
  const bool stale = store->get(mark).has_value();
  store->set(mark, "1");
  if (world.rank == options.failing_rank && environment.restart_count == options.failing_attempt) {
    throw EnvironmentError(options.fail);
  }
  const auto group = make_gloo_group(store->store(), world, kTimeout.count(), network_address(environment));
  const std::vector<double> mine = {static_cast<double>(world.rank + 1)};
  const double sum = sum_over_ranks(group->exchange(mine), world.size)[0];
  group->shut_down();
  const Json report = {{"size", world.size},
                       {"local_rank", environment.local_rank},
                       {"local_size", environment.local_world_size},
                       {"agent_store", environment.agent_store},
                       {"restart_count", environment.restart_count},
                       {"attempt", environment.attempt},
                       {"stale", stale},
                       {"sum", sum}};
  write_file_atomic(fmt::format("{}/{}.json", options.output, world.rank), write_json(report));
}

int run_tool(int argc, char** argv) {
  CLI::App app("A rank, for the tests under torchrun");
  Options options;
  app.add_option("output", options.output)->required();
  app.add_option("--fail", options.fail, "the message to fail with");
  app.add_option("--failing-rank", options.failing_rank);
  app.add_option("--failing-attempt", options.failing_attempt);
  CLI11_PARSE(app, argc, argv);
  RankEnvironment environment;
  try {
    environment = read_rank_environment();
    run_rank(environment, options);
    return kExitOk;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    write_error_file(environment, error.what(), kExitEnvironment);
    return kExitEnvironment;
  }
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  return satune::run_tool(argc, argv);
}
