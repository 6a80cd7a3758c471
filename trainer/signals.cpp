#include "trainer/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <utility>

#include "data/files/error.h"
#include "trainer/failure_report.h"

namespace satune {
namespace {

// What a handler may touch: lock-free atomics with the process's lifetime.
std::atomic<bool> deferring{false};
// The signal of the first stop, and in the upper half the process that it came from; 0 = the kernel, for a
// terminal.
std::atomic<uint64_t> first_stop{0};
std::atomic<bool> save_requested{false};
std::atomic<bool> asked_twice_at_once{false};
std::atomic<const char*> stopped_file{nullptr};  // of the SignalWatch that lives
std::atomic<const char*> line_at_stop{nullptr};  // of the last StopNotice
std::atomic<const char*> line_at_once{nullptr};  // of the SignalWatch that lives
std::atomic<bool> line_is_of_resumable{false}, stop_is_noticed{false}, ends_as_stopped{false};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free &&
              std::atomic<const char*>::is_always_lock_free);

// A scheduler that signals every process of a job reaches a rank twice: directly, and through the launcher
// that started it. That is one request.
bool is_the_same_request(pid_t asker) {
  const pid_t parent = getppid(), first = static_cast<pid_t>(first_stop.load() >> 32);
  return (asker == parent) != (first == parent) && !asked_twice_at_once.exchange(true);
}

// Longest wait for a reader of stderr that does not read.
constexpr int kMillisecondsForLine = 1000;

void write_line(const char* line) {
  pollfd out = {STDERR_FILENO, POLLOUT, 0};
  // A pipe whose reader has gone would end the process otherwise.
  const bool takes_it = ::poll(&out, 1, kMillisecondsForLine) > 0 && out.revents == POLLOUT;
  [[maybe_unused]] const ssize_t written = takes_it ? ::write(STDERR_FILENO, line, std::strlen(line)) : 0;
}

[[noreturn]] void end_as_stopped() {
  // Several threads and handlers may come here; the line is to be out before the process ends.
  if (ends_as_stopped.exchange(true)) ::poll(nullptr, 0, kMillisecondsForLine);
  if (const char* line = line_at_once.exchange(nullptr)) write_line(line);
  const char* file = stopped_file.load();
  const bool told = file != nullptr && ::open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0666) >= 0;
  _exit(told ? kExitOk : kExitResumable);
}

void on_stop(int signal, siginfo_t* info, void*) {
  if (!deferring.load()) end_as_stopped();
  const uint64_t stop = static_cast<uint64_t>(info->si_pid) << 32 | static_cast<uint64_t>(signal);
  if (uint64_t none = 0; first_stop.compare_exchange_strong(none, stop)) return;
  if (is_the_same_request(info->si_pid)) return;
  std::signal(signal, SIG_DFL);
  raise(signal);  // takes effect when this handler returns
}

void on_stop_with_line(int signal, siginfo_t*, void*) {
  if (stop_is_noticed.exchange(true)) return;  // the first one is about to end the process
  write_line(line_at_stop.load());
  if (line_is_of_resumable.load()) _exit(kExitResumable);
  std::signal(signal, SIG_DFL);
  raise(signal);  // takes effect when this handler returns
}

void on_save(int) {
  save_requested.store(true);
}

struct sigaction installed(int signal, struct sigaction action) {
  struct sigaction previous = {};
  action.sa_flags |= SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, &previous);
  return previous;
}

using StopHandler = void (*)(int, siginfo_t*, void*);

struct sigaction install_stop(int signal, StopHandler handler = on_stop) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO;
  return installed(signal, action);
}

// A shell's nohup has it ignored, and it stays so.
struct sigaction install_stop_unless_ignored(int signal, StopHandler handler = on_stop) {
  struct sigaction previous = {};
  sigaction(signal, nullptr, &previous);
  const bool ignored = (previous.sa_flags & SA_SIGINFO) == 0 && previous.sa_handler == SIG_IGN;
  return ignored ? previous : install_stop(signal, handler);
}

struct sigaction ignore(int signal) {
  struct sigaction action = {};
  action.sa_handler = SIG_IGN;
  return installed(signal, action);
}

struct sigaction install_save(int signal) {
  struct sigaction action = {};
  action.sa_handler = on_save;
  return installed(signal, action);
}

}  // namespace

std::string stop_line(std::string_view what_is_left) {
  return fmt::format("{}satune: {}\n", ::isatty(STDERR_FILENO) != 0 ? "\n" : "",
                     error_line(fmt::format("stopped by a signal: {}", what_is_left)));
}

void end_of_signal(int signal) {
  std::signal(signal, SIG_DFL);
  sigset_t alone;
  sigemptyset(&alone);
  sigaddset(&alone, signal);
  ::pthread_sigmask(SIG_UNBLOCK, &alone, nullptr);
  ::raise(signal);
  _exit(128 + signal);  // where a parent has it blocked for good
}

const sigset_t& signals_of_ranks() {
  static const sigset_t set = [] {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&signals, signal);
    return signals;
  }();
  return set;
}

void take_signals() {
  ::pthread_sigmask(SIG_UNBLOCK, &signals_of_ranks(), nullptr);
}

StopNotice::StopNotice(std::string line, bool resumable) {
  // Outlives the notice: a handler may still be running in another thread.
  static std::string last_line;
  last_line = std::move(line);
  line_at_stop.store(last_line.c_str());
  line_is_of_resumable.store(resumable);
  stop_is_noticed.store(false);
  previous_term_ = install_stop_unless_ignored(SIGTERM, on_stop_with_line);
  previous_int_ = install_stop_unless_ignored(SIGINT, on_stop_with_line);
  previous_hup_ = install_stop_unless_ignored(SIGHUP, on_stop_with_line);
}

StopNotice::~StopNotice() {
  sigaction(SIGTERM, &previous_term_, nullptr);
  sigaction(SIGINT, &previous_int_, nullptr);
  sigaction(SIGHUP, &previous_hup_, nullptr);
}

SignalWatch::SignalWatch(std::string file, std::string line) : stopped_file_(std::move(file)) {
  say_at_stop(std::move(line));
  stopped_file.store(stopped_file_.empty() ? nullptr : stopped_file_.c_str());
  deferring.store(false);
  first_stop.store(0);
  save_requested.store(false);
  asked_twice_at_once.store(false);
  previous_term_ = install_stop(SIGTERM);
  previous_int_ = install_stop(SIGINT);
  previous_hup_ = install_stop_unless_ignored(SIGHUP);
  previous_usr1_ = install_save(SIGUSR1);
  previous_pipe_ = ignore(SIGPIPE);
  take_signals();
}

SignalWatch::~SignalWatch() {
  sigaction(SIGTERM, &previous_term_, nullptr);
  sigaction(SIGINT, &previous_int_, nullptr);
  sigaction(SIGHUP, &previous_hup_, nullptr);
  sigaction(SIGUSR1, &previous_usr1_, nullptr);
  sigaction(SIGPIPE, &previous_pipe_, nullptr);
  stopped_file.store(nullptr);
  line_at_once.store(nullptr);
}

void SignalWatch::defer_stop() {
  deferring.store(true);
}

void SignalWatch::end_at_once() {
  deferring.store(false);
  if (stop_requested()) end_as_stopped();  // one that came just before
}

void SignalWatch::say_at_stop(std::string line) {
  const std::string& kept = lines_.emplace_back(std::move(line));
  line_at_once.store(kept.empty() ? nullptr : kept.c_str());
}

void SignalWatch::end_stopped() {
  end_as_stopped();
}

bool SignalWatch::stop_requested() const {
  return first_stop.load() != 0;
}

std::string SignalWatch::stop_signal_name() const {
  const auto signal = static_cast<int>(first_stop.load() & 0xffffffff);
  return signal == SIGTERM ? "SIGTERM" : signal == SIGINT ? "SIGINT" : signal == SIGHUP ? "SIGHUP" : "";
}

bool SignalWatch::take_save_request() {
  return save_requested.exchange(false);
}

void InterruptHooks::before_forward(int) {
  if (signals_.stop_requested()) throw Interrupted();
}

void InterruptHooks::before_backward(int) {
  if (signals_.stop_requested()) throw Interrupted();
}

}  // namespace satune
