#include "trainer/commands/eval_ranks.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include "trainer/attempt.h"
#include "trainer/common_ground.h"
#include "trainer/failure_report.h"

namespace satune {
namespace {

constexpr std::chrono::seconds kStoreTimeout{300};
constexpr std::chrono::milliseconds kPause{20};
constexpr size_t kLongestValue = 1 << 20;  // the store refuses values of 8 MiB

std::string result_key(const std::string& name, int64_t rank) {
  return fmt::format("eval/{}/{}", name, rank);
}

std::string progress_key(const std::string& name, int64_t rank) {
  return fmt::format("eval progress/{}/{}", name, rank);
}

}  // namespace

EvalRanks::EvalRanks(const RankEnvironment& environment) : environment_(environment) {
  take_signals();
  if (environment.world.size == 1) return;
  environment_ = agree_on_attempt(environment, kStoreTimeout);
  const auto connect = [here = environment_] { return connect_store(here, kStoreTimeout); };
  store_ = connect();
  const auto end_process = [here = environment_](const RunFailed& failure) {
    report_rank_failure(here, failure.what(), failure.exit_code());
    std::_Exit(failure.exit_code());
  };
  coordinator_ = make_coordinator(
      environment_, [] { return std::string(); }, {}, connect, end_process);
}

EvalRanks::~EvalRanks() = default;

void EvalRanks::check_same(const Json& mine) {
  if (coordinator_) check_common_ground(mine, *coordinator_);
}

void EvalRanks::tell(const std::string& name, const ItemCount& count) {
  if (!store_ || is_leader()) return;
  store_->set(progress_key(name, environment_.world.rank), fmt::format("{} {}", count.items, count.tokens));
}

ItemCount EvalRanks::progress(const std::string& name) {
  ItemCount sum;
  if (!store_) return sum;
  std::vector<std::string> keys;
  for (int64_t rank = 1; rank < environment_.world.size; ++rank) keys.push_back(progress_key(name, rank));
  for (const std::optional<std::string>& value : store_->get_all(keys)) {
    if (!value) continue;
    size_t used = 0;
    sum.items += std::stoll(*value, &used);
    sum.tokens += std::stoll(value->substr(used));
  }
  return sum;
}

std::map<int64_t, ItemResult> EvalRanks::gather(const std::string& name, std::map<int64_t, ItemResult> own,
                                                const std::function<void()>& idle) {
  if (!store_) return own;
  if (!is_leader()) {
    Json list = Json::array();
    for (const auto& [item, result] : own) list.push_back({item, result.tokens, result.result});
    const std::string text = list.dump();
    const std::string mine = result_key(name, environment_.world.rank);
    const size_t parts = (text.size() + kLongestValue - 1) / kLongestValue;
    for (size_t i = 0; i < parts; ++i)
      store_->set(fmt::format("{}/{}", mine, i), text.substr(i * kLongestValue, kLongestValue));
    store_->set(mine, std::to_string(parts));
    return {};
  }
  for (int64_t rank = 1; rank < environment_.world.size; ++rank) {
    const std::string key = result_key(name, rank);
    std::string text;
    const int64_t parts = std::stoll(receive(key, idle));
    for (int64_t i = 0; i < parts; ++i) text += receive(fmt::format("{}/{}", key, i), idle);
    for (const Json& entry : parse_json(text, "results of rank " + std::to_string(rank))) {
      const int64_t item = entry[0];
      own[item] = {item, entry[2], entry[1]};
    }
  }
  return own;
}

std::string EvalRanks::receive(const std::string& key, const std::function<void()>& idle) {
  for (;;) {
    if (std::optional<std::string> value = store_->get(key)) return *std::move(value);
    coordinator_->checkpoint();
    idle();
    std::this_thread::sleep_for(kPause);
  }
}

void EvalRanks::leave() {
  if (coordinator_) coordinator_->leave();
}

void EvalRanks::fail() {
  if (!coordinator_) throw;
  Failure failure = current_failure();
  // What fails because another rank has failed is that failure.
  if (const int code = coordinator_->failure_code(); code != 0)
    failure = {coordinator_->explain(failure.message), code};
  // The report first: those of ranks that fail because of this one carry a later time.
  report_rank_failure(environment_, failure.message, failure.exit_code);
  coordinator_->announce_failure(failure.message, failure.exit_code);
  std::_Exit(failure.exit_code);
}

}  // namespace satune
