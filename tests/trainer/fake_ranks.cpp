#include "tests/trainer/fake_ranks.h"

#include <stdexcept>

#include "data/files/error.h"

namespace satune::trainer_test {
namespace {

constexpr auto kLong = std::chrono::minutes(1);

}  // namespace

struct FakeServer::State {
  std::mutex mutex;
  std::condition_variable closed_changed;
  std::map<std::string, std::string> values;
  bool closed = false;
};

std::shared_ptr<FakeServer::State> FakeServer::make_state() {
  return std::make_shared<State>();
}

namespace {

class FakeConnection : public RunStore {
 public:
  FakeConnection(std::shared_ptr<FakeServer::State> state, std::shared_ptr<const std::atomic<Fault>> fault)
      : state_(std::move(state)), fault_(std::move(fault)) {}

  void set(const std::string& key, const std::string& value) override {
    const auto lock = answer();
    state_->values[key] = value;
  }

  std::optional<std::string> get(const std::string& key) override {
    const auto lock = answer();
    const auto found = state_->values.find(key);
    return found == state_->values.end() ? std::nullopt : std::optional(found->second);
  }

  std::vector<std::optional<std::string>> get_all(const std::vector<std::string>& keys) override {
    std::vector<std::optional<std::string>> values;
    for (const std::string& key : keys) values.push_back(get(key));
    return values;
  }

  int64_t add(const std::string& key, int64_t value) override {
    const auto lock = answer();
    std::string& sum = state_->values[key];
    value += sum.empty() ? 0 : std::stoll(sum);
    sum = std::to_string(value);
    return value;
  }

  c10d::Store& store() override { throw std::logic_error("not a c10d store"); }

 private:
  std::unique_lock<std::mutex> answer() {
    std::unique_lock lock(state_->mutex);
    if (!state_->closed && *fault_ == Fault::kHangs) {
      state_->closed_changed.wait(lock, [this] { return state_->closed; });
    }
    if (state_->closed || *fault_ == Fault::kThrows) throw EnvironmentError("connection reset by peer");
    return lock;
  }

  std::shared_ptr<FakeServer::State> state_;
  const std::shared_ptr<const std::atomic<Fault>> fault_;
};

}  // namespace

void FakeServer::close() {
  const std::lock_guard lock(state_->mutex);
  state_->closed = true;
  state_->closed_changed.notify_all();
}

std::shared_ptr<RunStore> FakeServer::connect(std::shared_ptr<const std::atomic<Fault>> fault) {
  return std::make_shared<FakeConnection>(state_, std::move(fault));
}

std::shared_ptr<RunStore> FakeServer::connect() {
  return connect(std::make_shared<std::atomic<Fault>>(Fault::kNone));
}

bool FakeCollectives::meet(int64_t number) {
  std::unique_lock lock(mutex_);
  ++arrived_[number];
  changed_.notify_all();
  const bool met =
      changed_.wait_for(lock, kLong, [&] { return broken_ || arrived_[number] == ranks_; }) && !broken_;
  if (!met) {
    broken_ = true;
    changed_.notify_all();
  }
  return met;
}

void FakeCollectives::break_all() {
  const std::lock_guard lock(mutex_);
  broken_ = true;
  changed_.notify_all();
}

FakeRank::FakeRank(FakeServer& server, int64_t rank, int64_t ranks, const CoordinatorOptions& options,
                   bool agent_store)
    : server_(server), options_(options) {
  environment_.world = {rank, ranks};
  environment_.local_rank = rank;
  environment_.local_world_size = ranks;
  environment_.agent_store = agent_store;
}

void FakeRank::start() {
  coordinator_ = make_coordinator(
      environment_, [this] { return std::string(signal_.load()); }, options_,
      [this] { return server_.connect(fault_); },
      [this](const RunFailed& failure) {
        {
          const std::lock_guard lock(mutex_);
          end_ = {failure.what(), failure.exit_code()};
          ended_ = true;
          changed_.notify_all();
        }
        at_end();
      });
  coordinator_->defer_stop();
}

std::pair<std::string, int> FakeRank::wait_for_end() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kLong, [this] { return ended_.load(); });
  return end_;
}

CoordinatorOptions fast_options() {
  CoordinatorOptions options;
  options.beat = 0.002;
  options.lost_after = 60;
  options.stalled_after = 60;
  options.grace = 60;
  return options;
}

std::vector<std::unique_ptr<FakeRank>> make_ranks(FakeServer& server, int64_t ranks,
                                                  const CoordinatorOptions& options, bool agent_store) {
  std::vector<std::unique_ptr<FakeRank>> made;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    made.push_back(std::make_unique<FakeRank>(server, rank, ranks, options, agent_store));
  }
  for (auto& rank : made) rank->start();
  return made;
}

Outcome outcome_of(const std::function<std::string()>& body) {
  try {
    return {"returned", body(), 0};
  } catch (const Interrupted&) {
    return {"interrupted", "", kExitResumable};
  } catch (const RunFailed& failed) {
    return {"failed", failed.what(), failed.exit_code()};
  } catch (const std::exception& error) {
    return {"error", error.what(), kExitFailure};
  }
}

std::string walk_for_ever(Coordinator& coordinator) {
  for (;;) {
    coordinator.checkpoint();
    std::this_thread::yield();
  }
}

}  // namespace satune::trainer_test
