#include "trainer/commands/eval_ranks.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>
#include <utility>

namespace satune {
namespace {

constexpr std::chrono::seconds kStoreTimeout{300};
constexpr std::chrono::milliseconds kPause{20};
constexpr size_t kLongestValue = 1 << 20;  // the store refuses values of 8 MiB

}  // namespace

EvalRanks::EvalRanks(RankEnvironment environment) : environment_(std::move(environment)) {
  if (environment_.world.size > 1) store_ = connect_store(environment_, kStoreTimeout);
}

std::map<int64_t, ItemResult> EvalRanks::gather(const std::string& name, std::map<int64_t, ItemResult> own) {
  if (!store_) return own;
  const auto key = [&](int64_t rank) { return fmt::format("eval/{}/{}", name, rank); };
  if (!is_leader()) {
    Json list = Json::array();
    for (const auto& [item, result] : own) list.push_back({item, result.tokens, result.result});
    const std::string text = list.dump();
    const std::string mine = key(environment_.world.rank);
    const size_t parts = (text.size() + kLongestValue - 1) / kLongestValue;
    for (size_t i = 0; i < parts; ++i)
      store_->set(fmt::format("{}/{}", mine, i), text.substr(i * kLongestValue, kLongestValue));
    store_->set(mine, std::to_string(parts));
    return {};
  }
  for (int64_t rank = 1; rank < environment_.world.size; ++rank) {
    std::string text;
    const int64_t parts = std::stoll(receive(key(rank)));
    for (int64_t i = 0; i < parts; ++i) text += receive(fmt::format("{}/{}", key(rank), i));
    for (const Json& entry : parse_json(text, "results of rank " + std::to_string(rank))) {
      const int64_t item = entry[0];
      own[item] = {item, entry[2], entry[1]};
    }
  }
  return own;
}

std::string EvalRanks::receive(const std::string& key) {
  for (;;) {
    if (const std::optional<std::string> value = store_->get(key)) return *value;
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace satune
