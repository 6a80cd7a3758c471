// Ranks as threads: a store in memory whose connections can fail, a collective that blocks like a real one,
// and the process end that a rank was given.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "trainer/coordinator.h"
#include "trainer/run_store.h"

namespace satune::trainer_test {

/// How a connection misbehaves.
enum class Fault {
  kNone,
  kThrows,  ///< the server is gone
  kHangs,   ///< the server is stopped, or this host is cut off; until close()
};

class FakeServer {
 public:
  ~FakeServer() { close(); }
  std::shared_ptr<RunStore> connect(std::shared_ptr<const std::atomic<Fault>> fault);
  std::shared_ptr<RunStore> connect();
  /// From here on every call throws, also those that hang.
  void close();

  struct State;

 private:
  std::shared_ptr<State> state_ = make_state();
  static std::shared_ptr<State> make_state();
};

/// A collective: returns when all ranks have come to the same `number`. Broken, it lets everybody go.
class FakeCollectives {
 public:
  explicit FakeCollectives(int64_t ranks) : ranks_(ranks) {}
  /// False when broken, or after a minute: then the ranks hang.
  bool meet(int64_t number);
  void break_all();

 private:
  const int64_t ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, int64_t> arrived_;
  bool broken_ = false;
};

/// What is around one rank's coordinator. The coordinator is made by start() and is gone after stop().
class FakeRank {
 public:
  FakeRank(FakeServer& server, int64_t rank, int64_t ranks, const CoordinatorOptions& options,
           bool agent_store = false);

  /// Stops are deferred, as in the steps of a run, until coordinator().end_at_once().
  void start();
  void stop() { coordinator_.reset(); }
  Coordinator& coordinator() { return *coordinator_; }
  void signal(const char* name) { signal_ = name; }
  void set_fault(Fault fault) { *fault_ = fault; }

  /// Waits for the process's end and returns message and exit code; "" after a minute without.
  std::pair<std::string, int> wait_for_end();
  bool ended() const { return ended_; }
  /// Called at the process's end, to let the main thread go.
  std::function<void()> at_end = [] {};

 private:
  FakeServer& server_;
  const std::shared_ptr<std::atomic<Fault>> fault_ = std::make_shared<std::atomic<Fault>>(Fault::kNone);
  RankEnvironment environment_;
  CoordinatorOptions options_;
  std::atomic<const char*> signal_{""};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> ended_{false};
  std::pair<std::string, int> end_{"", 0};
  std::unique_ptr<Coordinator> coordinator_;
};

/// Beats fast; nothing is lost or stalls within a test's life.
CoordinatorOptions fast_options();

std::vector<std::unique_ptr<FakeRank>> make_ranks(FakeServer& server, int64_t ranks,
                                                  const CoordinatorOptions& options,
                                                  bool agent_store = false);

/// How a main thread ended.
struct Outcome {
  std::string kind;  ///< "interrupted", "failed", "returned", "error"
  std::string message;
  int exit_code = 0;
};
Outcome outcome_of(const std::function<std::string()>& body);

/// A rank's main thread; joined at the latest when it goes.
class MainThread {
 public:
  explicit MainThread(std::function<std::string()> body)
      : thread_([this, body = std::move(body)] { outcome_ = outcome_of(body); }) {}
  ~MainThread() {
    if (thread_.joinable()) thread_.join();
  }
  const Outcome& join() {
    thread_.join();
    return outcome_;
  }

 private:
  Outcome outcome_;
  std::thread thread_;
};

/// Checkpoint after checkpoint.
std::string walk_for_ever(Coordinator& coordinator);

}  // namespace satune::trainer_test
