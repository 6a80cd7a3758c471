#include "trainer/signals.h"

#include <unistd.h>

#include <atomic>

#include "data/files/error.h"

namespace satune {
namespace {

// What a handler may touch: lock-free atomics with the process's lifetime.
std::atomic<bool> deferring{false};
std::atomic<int> stop_signal{0};
std::atomic<bool> save_requested{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void on_stop(int signal) {
  if (!deferring.load()) _exit(kExitResumable);
  stop_signal.store(signal);
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGINT, SIG_DFL);
}

void on_save(int) {
  save_requested.store(true);
}

struct sigaction install(int signal, void (*handler)(int)) {
  struct sigaction action = {}, previous = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, &previous);
  return previous;
}

}  // namespace

SignalWatch::SignalWatch() {
  deferring.store(false);
  stop_signal.store(0);
  save_requested.store(false);
  previous_term_ = install(SIGTERM, on_stop);
  previous_int_ = install(SIGINT, on_stop);
  previous_usr1_ = install(SIGUSR1, on_save);
}

SignalWatch::~SignalWatch() {
  sigaction(SIGTERM, &previous_term_, nullptr);
  sigaction(SIGINT, &previous_int_, nullptr);
  sigaction(SIGUSR1, &previous_usr1_, nullptr);
}

void SignalWatch::defer_stop() {
  deferring.store(true);
}

void SignalWatch::end_at_once() {
  deferring.store(false);
}

bool SignalWatch::stop_requested() const {
  return stop_signal.load() != 0;
}

std::string SignalWatch::stop_signal_name() const {
  const int signal = stop_signal.load();
  return signal == SIGTERM ? "SIGTERM" : signal == SIGINT ? "SIGINT" : "";
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
