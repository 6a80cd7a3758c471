#include "trainer/coordinator.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "trainer/first_failure.h"
#include "trainer/pulse.h"
#include "trainer/rank_status.h"
#include "trainer/run_store.h"
#include "trainer/watchdog.h"

namespace satune {
namespace {

// The two threads of a rank.
class RankThreads {
 public:
  explicit RankThreads(std::shared_ptr<RankStatus> status) : status_(std::move(status)) {}

  ~RankThreads() {
    status_->finish();
    if (watchdog_.joinable()) watchdog_.join();
    if (!pulse_.joinable()) return;
    constexpr double kPatience = 0.05;
    if (status_->wait_for_pulse_end(kPatience)) {
      pulse_.join();
    } else {
      pulse_.detach();  // hangs in the store; it owns all that it uses
    }
  }
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  void start(const std::shared_ptr<Pulse>& pulse, const std::function<void()>& watchdog) {
    pulse_ = start_thread("satune-pulse", [pulse] { pulse->run(); });
    watchdog_ = start_thread("satune-watchdog", watchdog);
  }

 private:
  // Signals are for the threads that were there before.
  static std::thread start_thread(const char* name, const std::function<void()>& function) {
    sigset_t all, previous;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    std::thread thread(function);
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    pthread_setname_np(thread.native_handle(), name);
    return thread;
  }

  const std::shared_ptr<RankStatus> status_;
  std::thread pulse_, watchdog_;
};

class RankCoordinator : public Coordinator {
 public:
  RankCoordinator(const RankEnvironment& environment, StopSignal stop_signal,
                  const CoordinatorOptions& options, const ConnectStore& connect, EndProcess end_process)
      : Coordinator(environment.world),
        status_(std::make_shared<RankStatus>(environment.world, options, std::move(stop_signal),
                                             environment.world.rank == 0 && !environment.agent_store)),
        store_(connect()),
        threads_(status_) {
    const auto pulse = std::make_shared<Pulse>(environment, options, status_, connect());
    pulse->begin();
    threads_.start(pulse, [=, status = status_, end = std::move(end_process)] {
      run_watchdog(environment, options, *status, end);
    });
  }

  void at_step(int64_t step) override { status_->at_step(step); }
  void at_phase(const char* phase, int segment) override { status_->at_phase(phase, segment); }
  void enter_collective(const char* what) override { status_->enter_collective(what); }
  void leave_collective() override { status_->leave_collective(); }
  int64_t begin_file_call(const std::string& what) override { return status_->begin_file_call(what); }
  void end_file_call(int64_t call) override { status_->end_file_call(call); }
  void checkpoint() override { status_->checkpoint(); }
  void hold() override { status_->hold(); }
  void release() override { status_->release(); }
  void defer_stop() override { status_->defer_stop(true); }
  void end_at_once() override { status_->defer_stop(false); }
  bool stopping() const override { return status_->stopping(); }
  std::string stop_reason() const override { return status_->stop_reason(); }
  int failure_code() const override { return status_->failure_code(); }
  bool failure_is_stop() const override {
    const auto failure = status_->failure();
    return failure && failure->is_stop();
  }
  void leave() override { status_->leave(); }

  void publish(const std::string& name, const std::string& value) override {
    talk([&] { store_->set(key_of(name), value); });
  }

  std::string wait_for(const std::string& name) override {
    constexpr double kFirstPause = 0.001, kLongestPause = 0.05;
    for (double pause = kFirstPause;; pause = std::min(2 * pause, kLongestPause)) {
      std::optional<std::string> value;
      talk([&] { value = store_->get(key_of(name)); });
      if (value) return *value;
      status_->throw_if_failed();
      status_->pause(pause);
    }
  }

  void barrier(const std::string& name) override {
    const std::string key = "barrier/" + name;
    int64_t arrived = 0;
    talk([&] { arrived = store_->add(key, 1); });
    if (arrived == world_.size) publish(key, "open");
    wait_for(key);
  }

  void announce_failure(const std::string& message, int exit_code) override {
    try {
      if (!status_->failure()) {
        const std::string who = fmt::format("rank {} (host {}, pid {})", world_.rank, status_->process().host,
                                            status_->process().pid);
        status_->learn(announce_first(*store_, {world_.rank, false, exit_code, who + " failed: " + message}));
      }
      status_->deliver();
    } catch (const std::exception&) {
      // Without the store the others find out by this rank's silence.
    }
  }

  std::string explain(const std::string& error) override {
    const auto failure = status_->explain();
    return failure ? failure->what() : error;
  }

 private:
  static std::string key_of(const std::string& name) { return "run/" + name; }

  // A store that does not answer is a symptom: a lost rank held it.
  template <typename Call>
  void talk(const Call& call) {
    try {
      call();
    } catch (const EnvironmentError&) {
      if (const auto failure = status_->explain()) throw *failure;
      throw;
    }
  }

  const std::shared_ptr<RankStatus> status_;
  const std::shared_ptr<RunStore> store_;
  RankThreads threads_;
};

}  // namespace

std::unique_ptr<Coordinator> make_coordinator(const RankEnvironment& environment, StopSignal stop_signal,
                                              const CoordinatorOptions& options, const ConnectStore& connect,
                                              EndProcess end_process) {
  if (environment.world.size == 1) return make_solo_coordinator(std::move(stop_signal));
  return std::make_unique<RankCoordinator>(environment, std::move(stop_signal), options, connect,
                                           std::move(end_process));
}

std::unique_ptr<Coordinator> make_coordinator(const RankEnvironment& environment, const SignalWatch& signals,
                                              const CoordinatorOptions& options, const ConnectStore& connect,
                                              EndProcess end_process) {
  return make_coordinator(
      environment, [&signals] { return signals.stop_signal_name(); }, options, connect,
      std::move(end_process));
}

}  // namespace satune
