#include "trainer/rank_supervision.h"

#include <poll.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "data/files/error.h"
#include "trainer/signals.h"

namespace satune {
namespace {

using Clock = std::chrono::steady_clock;

/// A second one ends a rank that handles signals. One that does not get there blocks them.
constexpr int64_t kStopsThatKill = 3;

bool is_stop(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGHUP;
}

// On a terminal the cursor may stand behind rank 0's progress bar, which it draws again.
OutputLines prefixed_lines(int64_t rank) {
  const std::string prefix =
      fmt::format("{}[rank {}] ", ::isatty(STDERR_FILENO) != 0 ? "\r\033[K" : "", rank);
  return OutputLines(
      [prefix](std::string_view line) { write_all(STDERR_FILENO, prefix + std::string(line)); });
}

}  // namespace

RankSupervision::RankSupervision(const RankStart& start, SignalEvents& signals)
    : start_(start), signals_(signals) {}

void RankSupervision::run() {
  start_ranks();
  while (any_running()) {
    wait_for_events();
    pass_on_output();
    for (const int signal : signals_.take()) pass_on(signal);
    note_ends();
    if (!ending_ && (!failures_.empty() || left_alone_)) end_others();
    if (ending_ && !killing_ && Clock::now() >= deadline_) kill_those_left();
  }
}

void RankSupervision::start_ranks() {
  sigset_t mask = signals_.previous_mask();
  if (start_.signals_when_ready) sigorset(&mask, &mask, &signals_of_ranks());
  for (int64_t rank = 0; rank < start_.processes; ++rank) {
    const ProcessStart process{start_.program, start_.arguments, start_.environment(rank), mask,
                               /*capture_output=*/rank != 0};
    ranks_.push_back({ChildProcess(process), prefixed_lines(rank)});
  }
}

void RankSupervision::wait_for_events() {
  std::vector<pollfd> watched = {{signals_.descriptor(), POLLIN, 0}};
  for (Rank& rank : ranks_) {
    if (rank.process.output().is_open()) watched.push_back({rank.process.output().get(), POLLIN, 0});
  }
  int timeout = -1;
  if (ending_ && !killing_) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
    timeout = static_cast<int>(std::max<int64_t>(left, 0));
  }
  ::poll(watched.data(), watched.size(), timeout);
}

void RankSupervision::pass_on_output() {
  for (Rank& rank : ranks_) {
    Descriptor& output = rank.process.output();
    if (output.is_open() && !read_available(output.get(), rank.lines)) output.reset();
  }
}

void RankSupervision::pass_on(int signal) {
  if (signal == SIGCHLD) return;  // what it tells is asked for in note_ends()
  if (is_stop(signal)) {
    stop_signal_ = signal;
    ++stops_;
  }
  for (size_t i = 0; i < ranks_.size(); ++i) {
    ranks_[i].process.send(signal);
    if (!start_.signals_when_ready || stops_ < kStopsThatKill || !ranks_[i].process.running()) continue;
    killed_by_stop_ = true;
    kill(i);
  }
}

void RankSupervision::note_ends() {
  const int64_t round = rounds_++;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    Rank& rank = ranks_[i];
    if (!rank.process.has_ended()) continue;
    // What it wrote last. A process that it left behind may hold the pipe open: nobody waits for that.
    if (rank.process.output().is_open()) read_available(rank.process.output().get(), rank.lines);
    rank.process.output().reset();
    rank.lines.finish();
    note_end(static_cast<int64_t>(i), rank.process.end(), round);
  }
}

void RankSupervision::note_end(int64_t rank, const ProcessEnd& end, int64_t round) {
  if (end.signal == 0 && end.exit_code == kExitOk) return;
  if (end.signal == 0 && end.exit_code == kExitResumable) {
    rank_stopped_ = rank_stopped_ || !ending_;  // afterwards it is the answer to our own SIGTERM
    RankFailure alone = describe_failure(rank, end, round, start_.error_file(rank));
    if (!left_alone_ && !alone.message.empty()) left_alone_ = std::move(alone);
    return;
  }
  if (told_to_end(static_cast<size_t>(rank), end.signal)) {
    killed_by_stop_ = killed_by_stop_ || (!ending_ && stops_ > 1 && is_stop(end.signal));
    spdlog::warn("rank {} was ended by {}", rank, signal_name(end.signal));
    return;
  }
  failures_.push_back(describe_failure(rank, end, round, start_.error_file(rank)));
}

bool RankSupervision::told_to_end(size_t rank, int signal) const {
  if (stop_signal_ != 0 && is_stop(signal)) return true;
  return (ending_ && signal == SIGTERM) || (ranks_[rank].killed && signal == SIGKILL);
}

void RankSupervision::end_others() {
  ending_ = true;
  deadline_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                 std::chrono::duration<double>(start_.grace_seconds));
  if (!any_running()) return;
  if (failures_.empty()) {
    spdlog::warn("rank {}: {}: the other ranks are told to end", left_alone_->rank, reason(*left_alone_));
  } else {
    spdlog::warn("rank {} has failed: the other ranks are told to end", failures_.front().rank);
  }
  for (size_t i = 0; i < ranks_.size(); ++i) {
    ranks_[i].process.send(SIGTERM);
    if (!ranks_[i].process.is_stopped()) continue;
    spdlog::warn("rank {} is stopped (SIGSTOP) and cannot end by itself: it is killed", i);
    kill(i);
  }
}

void RankSupervision::kill(size_t rank) {
  ranks_[rank].process.kill();
  ranks_[rank].killed = true;
}

void RankSupervision::kill_those_left() {
  killing_ = true;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (!ranks_[i].process.running()) continue;
    spdlog::warn("rank {} has not ended within {} s of being told to", i, start_.grace_seconds);
    kill(i);
  }
}

bool RankSupervision::any_running() const {
  return std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.process.running(); });
}

}  // namespace satune
