#include "trainer/rank_watch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace satune {

void Silence::look(int64_t value, double seconds) {
  seconds_ = value_ == value ? seconds_ + std::min(seconds, limit_ / 4) : 0;
  value_ = value;
}

RankVigil::RankVigil(int64_t rank, const CoordinatorOptions& options, LookAtProcess look_at)
    : rank_(rank),
      options_(options),
      look_at_(std::move(look_at)),
      absence_(options.start_within),
      silence_(options.lost_after) {}

std::optional<RunFailure> RankVigil::look(const std::optional<Heartbeat>& heartbeat, double seconds) {
  const std::optional<std::string> how = how_lost(heartbeat, seconds);
  lost_ = how.has_value();
  if (!how) return std::nullopt;
  std::string message = describe_rank(rank_, heartbeat_) + " " + *how;
  if (heartbeat_) message += "; last heard of in " + describe_position(*heartbeat_);
  return RunFailure{rank_, true, kExitEnvironment, message};
}

std::optional<std::string> RankVigil::how_lost(const std::optional<Heartbeat>& heartbeat, double seconds) {
  if (!heartbeat) {
    absence_.look(0, seconds);
    if (!absence_.too_long()) return std::nullopt;
    return fmt::format("has not come within {:.3g} s", options_.start_within);
  }
  heartbeat_ = heartbeat;
  silence_.look(heartbeat->counter, seconds);
  if (heartbeat->left) return std::nullopt;
  const ProcessState state = look_at_(heartbeat->process);
  if (state == ProcessState::kGone) return "is gone: its process ended";
  if (!silence_.too_long()) return std::nullopt;
  return fmt::format("is lost: {}no heartbeat for {:.3g} s",
                     state == ProcessState::kStopped ? "its process is stopped, " : "", silence_.seconds());
}

RankWatch::RankWatch(int64_t ranks, const CoordinatorOptions& options, const LookAtProcess& look_at)
    : options_(options), counters_(static_cast<size_t>(ranks), 0) {
  vigils_.reserve(static_cast<size_t>(ranks));
  for (int64_t rank = 0; rank < ranks; ++rank) vigils_.emplace_back(rank, options, look_at);
}

std::optional<RunFailure> RankWatch::look(const std::vector<std::optional<Heartbeat>>& heartbeats,
                                          double seconds) {
  std::optional<RunFailure> first;
  for (size_t rank = 0; rank < vigils_.size(); ++rank) {
    std::optional<RunFailure> lost = vigils_[rank].look(heartbeats[rank], seconds);
    if (lost && !first) first = std::move(lost);
  }
  if (first) return first;
  count_rounds();
  if (auto hung = hung_file_call()) return hung;
  return stall();
}

std::optional<RunFailure> RankWatch::hung_file_call() const {
  for (size_t i = 0; i < vigils_.size(); ++i) {
    const auto& heartbeat = vigils_[i].heartbeat();
    if (!heartbeat || heartbeat->left || heartbeat->file_call_seconds <= options_.stalled_after) continue;
    const auto rank = static_cast<int64_t>(i);
    return RunFailure{rank, false, kExitEnvironment,
                      fmt::format("{} waits for its disk: {:.4g} s in one call, {}; last heard of in {}",
                                  describe_rank(rank, heartbeat), heartbeat->file_call_seconds,
                                  heartbeat->file_call, describe_position(*heartbeat))};
  }
  return std::nullopt;
}

void RankWatch::count_rounds() {
  for (size_t rank = 0; rank < vigils_.size(); ++rank) {
    const auto& heartbeat = vigils_[rank].heartbeat();
    if (!heartbeat || (!heartbeat->left && heartbeat->counter == counters_[rank])) return;
  }
  for (size_t rank = 0; rank < vigils_.size(); ++rank) counters_[rank] = vigils_[rank].heartbeat()->counter;
  ++rounds_;
}

// A rank that has just read that it waits too long may come through at the next beat, as may one that slept:
// two rounds of fresh heartbeats must find it in the same place.
std::optional<RunFailure> RankWatch::stall() {
  const auto too_long = std::find_if(vigils_.begin(), vigils_.end(), [&](const RankVigil& vigil) {
    return vigil.heartbeat() && vigil.heartbeat()->collective_seconds > options_.stalled_after;
  });
  if (too_long == vigils_.end()) {
    waiting_.reset();
    return std::nullopt;
  }
  const Heartbeat& waiting = *too_long->heartbeat();
  const int64_t rank = too_long - vigils_.begin();
  if (!waiting_ || waiting_->rank != rank || waiting_->passed != waiting.passed) {
    waiting_ = {rank, waiting.passed, rounds_};
  }
  if (rounds_ < waiting_->since_round + 2) return std::nullopt;

  return describe_stall(rank);
}

// Behind are those with the fewest checkpoints, or, where all have as many, those that have not come to this
// collective.
RunFailure RankWatch::describe_stall(int64_t waiting_rank) const {
  const Heartbeat& waiting = *vigils_[static_cast<size_t>(waiting_rank)].heartbeat();
  int64_t fewest = waiting.passed;
  for (const RankVigil& vigil : vigils_) fewest = std::min(fewest, vigil.heartbeat()->passed);
  std::vector<std::string> behind;
  int64_t first_behind = waiting_rank;
  for (size_t i = 0; i < vigils_.size(); ++i) {
    const Heartbeat& other = *vigils_[i].heartbeat();
    if (other.passed != fewest) continue;
    if (fewest == waiting.passed && other.collective == waiting.collective) continue;
    if (behind.empty()) first_behind = static_cast<int64_t>(i);
    behind.push_back(fmt::format("{}, which {} {}", describe_rank(static_cast<int64_t>(i), other),
                                 other.left ? "has left after" : "is in", describe_position(other)));
  }
  constexpr size_t kNamed = 4;
  const size_t unnamed = behind.size() - std::min(behind.size(), kNamed);
  behind.resize(behind.size() - unnamed);
  std::string message =
      fmt::format("{}: waited {:.4g} s ", describe_position(waiting), waiting.collective_seconds);
  if (behind.empty()) {
    message += "although every rank has come to it: is the network between them up?";
  } else {
    message += fmt::format("for {}", fmt::join(behind, "; "));
    if (unnamed > 0) message += fmt::format("; and {} more", unnamed);
  }
  return {first_behind, false, kExitEnvironment, message};
}

}  // namespace satune
