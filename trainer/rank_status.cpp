#include "trainer/rank_status.h"

#include <fmt/format.h>

#include <algorithm>

namespace satune {
namespace {

std::chrono::nanoseconds nanoseconds(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

}  // namespace

RankStatus::RankStatus(const World& world, const CoordinatorOptions& options, StopSignal stop_signal,
                       bool serves_store)
    : world_(world),
      options_(options),
      stop_signal_(std::move(stop_signal)),
      serves_store_(serves_store),
      process_(this_process()),
      collective_silence_(options.stalled_after),
      last_beat_(Clock::now()) {}

void RankStatus::at_step(int64_t step) {
  const Lock lock(mutex_);
  position_.step = step;
}

void RankStatus::at_phase(const char* phase, int segment) {
  const Lock lock(mutex_);
  position_.phase = phase;
  position_.segment = segment;
}

void RankStatus::enter_collective(const char* what) {
  const Lock lock(mutex_);
  position_.collective = what;
  ++collective_visits_;
}

void RankStatus::leave_collective() {
  const Lock lock(mutex_);
  position_.collective = nullptr;
  ++collective_visits_;
}

int64_t RankStatus::begin_file_call(const std::string& what) {
  const Lock lock(mutex_);
  file_calls_.insert({++file_calls_begun_, {what, Silence(options_.stalled_after)}});
  return file_calls_begun_;
}

void RankStatus::end_file_call(int64_t call) {
  const Lock lock(mutex_);
  file_calls_.erase(call);
}

void RankStatus::hold() {
  const Lock lock(mutex_);
  stop_.hold();
}

void RankStatus::release() {
  const Lock lock(mutex_);
  stop_.release();
}

void RankStatus::checkpoint() {
  Lock lock(mutex_);
  if (stop_deferred_ && !signal_noted_ && !own_signal().empty()) {
    signal_noted_ = true;
    poke();
  }
  for (;;) {
    if (failure_ && !stop_.held()) throw_failure(lock);
    switch (stop_.pass()) {
      case StopAgreement::Passing::kPassed:
        return;
      case StopAgreement::Passing::kStopped:
        throw Interrupted();
      case StopAgreement::Passing::kHalted:
        changed_.wait(lock);
    }
  }
}

void RankStatus::defer_stop(bool deferred) {
  const Lock lock(mutex_);
  stop_deferred_ = deferred;
}

void RankStatus::leave() {
  Lock lock(mutex_);
  leaving_ = true;
  poke();
  changed_.wait(lock, [this] { return failure_ || left_; });
  if (!left_) throw_failure(lock);
}

bool RankStatus::stopping() const {
  const Lock lock(mutex_);
  return stop_.halted() || !own_signal().empty();
}

std::string RankStatus::stop_reason() const {
  const Lock lock(mutex_);
  if (!stop_reason_.empty()) return stop_reason_;
  const std::string signal = own_signal();
  return signal.empty() ? "" : fmt::format("{} on rank {}", signal, world_.rank);
}

void RankStatus::throw_if_failed() {
  Lock lock(mutex_);
  if (failure_) throw_failure(lock);
}

void RankStatus::pause(double seconds) {
  Lock lock(mutex_);
  changed_.wait_for(lock, nanoseconds(seconds), [this] { return failure_.has_value(); });
}

std::optional<RunFailed> RankStatus::explain() {
  Lock lock(mutex_);
  const int64_t begun = beats_begun_;
  ++explaining_;
  poke();
  // Rounds are counted elsewhere. The beat that begins after this call reads number n. The sweep that makes
  // it n + 1 may lie before the call, and the one after it may count heartbeats from before it; the third
  // counts only what was written since.
  constexpr int64_t kRounds = 3;
  changed_.wait(lock, [&] { return failure_ || left_ || beats_done_ > begun; });
  const int64_t rounds = rounds_ + kRounds;
  changed_.wait(lock, [&] { return failure_ || left_ || rounds_ >= rounds; });
  --explaining_;
  if (!failure_) return std::nullopt;
  deliver(lock);
  return failed();
}

void RankStatus::deliver() {
  Lock lock(mutex_);
  deliver(lock);
}

void RankStatus::deliver(Lock& lock) {
  if (delivered_at_) return;
  if (serves_store_ && !left_) {
    changed_.wait_for(lock, nanoseconds(options_.grace / 2), [this] { return others_know_ || pulse_ended_; });
  }
  delivered_at_ = Clock::now();
}

std::optional<RunFailed> RankStatus::failure() const {
  const Lock lock(mutex_);
  return failure_ ? std::optional(failed()) : std::nullopt;
}

int RankStatus::failure_code() const {
  const Lock lock(mutex_);
  return failure_ ? failed().exit_code() : 0;
}

std::string RankStatus::own_signal() const {
  return done_ ? "" : stop_signal_();
}

RunFailed RankStatus::failed() const {
  const bool stopped = failure_->lost && !own_signal().empty();
  return {failure_->message, stopped ? kExitResumable : failure_->exit_code, is_stop(*failure_)};
}

void RankStatus::throw_failure(Lock& lock) {
  deliver(lock);
  throw failed();
}

void RankStatus::poke() {
  ++pokes_;
  changed_.notify_all();
}

// Something waits for the answer to the next beat.
bool RankStatus::in_a_hurry() const {
  if (failure_) return serves_store_ && !others_know_;
  const bool agreeing = stop_.halted() ? !stop_.decided() : signal_noted_;
  return agreeing || explaining_ > 0 || leaving_;
}

bool RankStatus::wait_for_beat() {
  Lock lock(mutex_);
  const double beat = in_a_hurry() ? options_.beat / 10 : options_.beat;
  changed_.wait_until(lock, last_beat_ + nanoseconds(beat),
                      [this] { return done_ || pokes_ != pokes_seen_; });
  pokes_seen_ = pokes_;
  last_beat_ = Clock::now();
  ++beats_begun_;
  return !done_;
}

Heartbeat RankStatus::next_heartbeat(double seconds) {
  const Lock lock(mutex_);
  collective_silence_.look(collective_visits_, seconds);
  Heartbeat heartbeat;
  heartbeat.counter = beats_begun_;
  heartbeat.process = process_;
  heartbeat.step = position_.step;
  heartbeat.phase = position_.phase;
  heartbeat.segment = position_.segment;
  if (position_.collective != nullptr) {
    heartbeat.collective = position_.collective;
    heartbeat.collective_seconds = collective_silence_.seconds();
  }
  for (auto& [number, call] : file_calls_) {
    call.silence.look(number, seconds);
    if (call.silence.seconds() < heartbeat.file_call_seconds) continue;
    heartbeat.file_call = call.what;
    heartbeat.file_call_seconds = call.silence.seconds();
  }
  heartbeat.passed = stop_.passed();
  if (stop_deferred_) heartbeat.stop_signal = own_signal();
  signal_noted_ = signal_noted_ || !heartbeat.stop_signal.empty();
  heartbeat.knows_failure = failure_.has_value();
  heartbeat.left = leaving_;
  // Nothing comes after a rank's last checkpoint: the others walk on to the same end.
  heartbeat.halted_at = leaving_ ? stop_.halt() : stop_.posted();
  return heartbeat;
}

void RankStatus::store_answered() {
  const Lock lock(mutex_);
  ++answers_;
}

std::optional<RunFailure> RankStatus::stop_at_once() const {
  const Lock lock(mutex_);
  if (stop_deferred_ || leaving_ || failure_) return std::nullopt;
  const std::string signal = own_signal();
  const std::string reason =
      signal.empty() ? stop_reason_ : fmt::format("{} on rank {}", signal, world_.rank);
  if (reason.empty()) return std::nullopt;
  return RunFailure{world_.rank, false, kExitResumable, reason};
}

void RankStatus::learn(const RunFailure& failure) {
  const Lock lock(mutex_);
  if (failure_ || done_) return;
  failure_ = failure;
  known_since_ = Clock::now();
  poke();
}

void RankStatus::learn(const Bulletin& bulletin) {
  const Lock lock(mutex_);
  rounds_ = bulletin.rounds;
  if (!bulletin.stop_reason.empty() && !stop_.halted()) {
    stop_reason_ = bulletin.stop_reason;
    stop_.halt();
    poke();
  }
  if (bulletin.stop_after && !stop_.decided()) {
    stop_.go_until(*bulletin.stop_after);
    poke();
  }
}

void RankStatus::learn_leader(const std::optional<Heartbeat>& heartbeat) {
  const Lock lock(mutex_);
  leader_ = heartbeat;
}

void RankStatus::learn_others_know() {
  const Lock lock(mutex_);
  if (others_know_) return;
  others_know_ = true;
  changed_.notify_all();
}

std::optional<RunFailure> RankStatus::known_failure() const {
  const Lock lock(mutex_);
  return failure_;
}

void RankStatus::has_left() {
  const Lock lock(mutex_);
  left_ = true;
  changed_.notify_all();
}

void RankStatus::beat_done() {
  const Lock lock(mutex_);
  beats_done_ = beats_begun_;
  changed_.notify_all();
}

void RankStatus::pulse_ended() {
  const Lock lock(mutex_);
  pulse_ended_ = true;
  changed_.notify_all();
}

bool RankStatus::wait_for_tick() {
  Lock lock(mutex_);
  changed_.wait_for(lock, nanoseconds(options_.beat), [this] { return done_; });
  return !done_;
}

int64_t RankStatus::answers() const {
  const Lock lock(mutex_);
  return answers_;
}

bool RankStatus::talks() const {
  const Lock lock(mutex_);
  return !pulse_ended_ && !failure_;
}

std::optional<Heartbeat> RankStatus::leader() const {
  const Lock lock(mutex_);
  return leader_;
}

bool RankStatus::overdue() const {
  const auto now = Clock::now();
  const bool waits_for_nothing = is_stop(*failure_) && !stop_deferred_;
  if (waits_for_nothing && (!serves_store_ || others_know_ || pulse_ended_)) return true;
  if (waits_for_nothing && now - known_since_ >= nanoseconds(options_.grace / 2)) return true;
  return now - delivered_at_.value_or(known_since_) >= nanoseconds(options_.grace);
}

std::optional<RunFailed> RankStatus::take_overdue() {
  const Lock lock(mutex_);
  if (!failure_ || ended_ || left_ || done_ || !overdue()) return std::nullopt;
  ended_ = true;
  return failed();
}

void RankStatus::finish() {
  const Lock lock(mutex_);
  done_ = true;
  changed_.notify_all();
}

bool RankStatus::wait_for_pulse_end(double seconds) {
  Lock lock(mutex_);
  return changed_.wait_for(lock, nanoseconds(seconds), [this] { return pulse_ended_; });
}

}  // namespace satune
