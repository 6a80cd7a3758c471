#include "trainer/pulse.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <thread>

#include "trainer/first_failure.h"
#include "trainer/lost_store.h"
#include "trainer/run_store.h"

namespace satune {
namespace {

double seconds_between(RankStatus::Clock::time_point from, RankStatus::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// The next rank of the same host, around. Judged by what its heartbeat says, so that a wrong
// LOCAL_WORLD_SIZE costs speed only.
int64_t neighbour_of(const RankEnvironment& environment) {
  const int64_t first = environment.world.rank - environment.local_rank;
  const int64_t next = first + (environment.local_rank + 1) % environment.local_world_size;
  return next >= 0 && next < environment.world.size ? next : 0;
}

std::optional<Heartbeat> heartbeat_in(const std::optional<std::string>& record) {
  return record ? std::optional(decode_heartbeat(*record)) : std::nullopt;
}

}  // namespace

Pulse::Pulse(const RankEnvironment& environment, const CoordinatorOptions& options,
             std::shared_ptr<RankStatus> status, std::shared_ptr<RunStore> store)
    : environment_(environment),
      options_(options),
      status_(std::move(status)),
      store_(std::move(store)),
      look_at_([here = status_->process().machine](const ProcessIdentity& process) {
        return state_of(process, here);
      }),
      last_beat_(Clock::now()),
      last_written_(last_beat_),
      neighbour_(neighbour_of(environment)),
      leader_vigil_(0, options, look_at_),
      neighbour_vigil_(neighbour_, options, look_at_),
      watch_(environment.world.rank == 0 ? environment.world.size : 0, options, look_at_),
      unanswered_(options.lost_after) {}

void Pulse::begin() {
  write_heartbeat();
}

void Pulse::run() noexcept {
  try {
    while (status_->wait_for_beat() && beat()) {
    }
  } catch (const std::exception& error) {
    wait_for_the_end_of_leader();
    status_->learn(lost_store(environment_, status_->leader(), error.what()));
  }
  status_->pulse_ended();
}

// A dying process's sockets close before it is seen to have ended.
void Pulse::wait_for_the_end_of_leader() const {
  constexpr int kLooks = 20;
  const auto leader = status_->leader();
  for (int i = 0; leader && look_at_(leader->process) == ProcessState::kRunning && i < kLooks; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// Whether to go on. A rank that has left reads no more: rank 0, and the store with it, may be gone by then.
bool Pulse::beat() {
  const auto now = Clock::now();
  const double seconds = seconds_between(last_beat_, now);
  last_beat_ = now;
  bool left = write_heartbeat().left;
  if (environment_.world.rank == 0) {
    left = lead(seconds);
  } else if (!left) {
    follow(seconds);
  }
  // Where a rank is seen to be lost, that is what ended the run: whoever saw it die asks the others to stop.
  if (const auto stop = status_->stop_at_once()) learn(announce_first(*store_, *stop));
  if (left) status_->has_left();
  status_->beat_done();
  return !left;
}

Heartbeat Pulse::write_heartbeat(bool knows_failure) {
  const auto now = Clock::now();
  Heartbeat heartbeat = status_->next_heartbeat(seconds_between(last_written_, now));
  last_written_ = now;
  heartbeat.knows_failure = heartbeat.knows_failure || knows_failure;
  store_->set(heartbeat_key(environment_.world.rank), encode(heartbeat));
  status_->store_answered();
  return heartbeat;
}

std::vector<std::optional<std::string>> Pulse::read(const std::vector<std::string>& keys) {
  auto records = store_->get_all(keys);
  status_->store_answered();
  return records;
}

void Pulse::follow(double seconds) {
  const auto records = read({kFailureKey, kBulletinKey, heartbeat_key(0), heartbeat_key(neighbour_)});
  if (records[0]) learn(decode_failure(*records[0]));
  if (records[1]) status_->learn(decode_bulletin(*records[1]));
  const auto leader = heartbeat_in(records[2]);
  status_->learn_leader(leader);
  if (status_->known_failure()) return;
  if (const auto lost = leader_vigil_.look(leader, seconds)) return accuse(*lost, leader_vigil_);
  if (neighbour_ == 0 || neighbour_ == environment_.world.rank) return;
  const auto lost = neighbour_vigil_.look(heartbeat_in(records[3]), seconds);
  if (lost) accuse(*lost, neighbour_vigil_);
}

// Whether all have left.
bool Pulse::lead(double seconds) {
  std::vector<std::string> keys = {kFailureKey};
  for (int64_t rank = 0; rank < environment_.world.size; ++rank) keys.push_back(heartbeat_key(rank));
  const auto records = read(keys);
  std::vector<std::optional<Heartbeat>> heartbeats;
  std::transform(records.begin() + 1, records.end(), std::back_inserter(heartbeats), heartbeat_in);

  if (records[0]) learn(decode_failure(*records[0]));
  if (status_->known_failure()) {
    if (others_know(heartbeats)) status_->learn_others_know();
    return false;
  }
  std::optional<RunFailure> failure = watch_.look(heartbeats, seconds);
  if (!failure) failure = unanswered_stop(heartbeats, seconds);
  if (failure) {
    accuse(*failure, watch_.vigil(failure->rank));
    return false;
  }
  bulletin_.rounds = watch_.rounds();
  lead_stop(heartbeats);
  store_->set(kBulletinKey, encode(bulletin_));
  status_->store_answered();
  status_->learn(bulletin_);
  return std::all_of(heartbeats.begin(), heartbeats.end(), [](const auto& h) { return h && h->left; });
}

void Pulse::lead_stop(const std::vector<std::optional<Heartbeat>>& heartbeats) {
  if (bulletin_.stop_after) return;
  if (bulletin_.stop_reason.empty()) {
    for (size_t rank = 0; rank < heartbeats.size(); ++rank) {
      const auto& heartbeat = heartbeats[rank];
      if (!heartbeat || heartbeat->stop_signal.empty() || heartbeat->left) continue;
      bulletin_.stop_reason = fmt::format("{} on rank {}", heartbeat->stop_signal, rank);
      return;
    }
    return;
  }
  std::vector<std::optional<int64_t>> posted;
  std::transform(heartbeats.begin(), heartbeats.end(), std::back_inserter(posted),
                 [](const auto& heartbeat) { return heartbeat ? heartbeat->halted_at : std::nullopt; });
  bulletin_.stop_after = agree_on_stop(posted);
}

std::optional<RunFailure> Pulse::unanswered_stop(const std::vector<std::optional<Heartbeat>>& heartbeats,
                                                 double seconds) {
  if (bulletin_.stop_reason.empty() || bulletin_.stop_after) return std::nullopt;
  unanswered_.look(0, seconds);
  if (!unanswered_.too_long()) return std::nullopt;
  for (size_t i = 0; i < heartbeats.size(); ++i) {
    if (heartbeats[i] && heartbeats[i]->halted_at) continue;
    const auto rank = static_cast<int64_t>(i);
    return RunFailure{
        rank, true, kExitEnvironment,
        fmt::format("{} has not answered to {} within {:.3g} s{}", describe_rank(rank, heartbeats[i]),
                    bulletin_.stop_reason, unanswered_.seconds(),
                    heartbeats[i] ? "; last heard of in " + describe_position(*heartbeats[i]) : "")};
  }
  return std::nullopt;
}

bool Pulse::others_know(const std::vector<std::optional<Heartbeat>>& heartbeats) const {
  const RunFailure failure = *status_->known_failure();
  for (size_t i = 0; i < heartbeats.size(); ++i) {
    const auto& heartbeat = heartbeats[i];
    const auto rank = static_cast<int64_t>(i);
    if (rank == environment_.world.rank || (failure.lost && rank == failure.rank)) continue;
    if (!heartbeat) return false;  // it is about to come, and would look for the store in vain
    if (heartbeat->knows_failure || heartbeat->left) continue;
    if (look_at_(heartbeat->process) != ProcessState::kGone) return false;
  }
  return true;
}

// A rank may have left in an orderly way, said why it fails, or beaten after all, between what was read and
// the end of its process: its last word is read again.
void Pulse::accuse(const RunFailure& failure, RankVigil& vigil) {
  const auto records = read({kFailureKey, heartbeat_key(failure.rank)});
  if (records[0]) return learn(decode_failure(*records[0]));
  if (vigil.lost() && !vigil.look(heartbeat_in(records[1]), 0)) return;
  learn(announce_first(*store_, failure));
}

// The others may be waiting to hear that this rank knows; its main thread may end the process at once.
void Pulse::learn(const RunFailure& failure) {
  if (status_->known_failure()) return;
  try {
    write_heartbeat(/*knows_failure=*/true);
  } catch (const std::exception&) {
    // A store that is gone with the failed rank changes nothing about who failed.
  }
  status_->learn(failure);
}

}  // namespace satune
