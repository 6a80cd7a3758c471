// The coordinator of a process alone.
#include <fmt/format.h>

#include <map>
#include <mutex>
#include <stdexcept>

#include "trainer/coordinator.h"

namespace satune {
namespace {

class SoloCoordinator : public Coordinator {
 public:
  explicit SoloCoordinator(StopSignal stop_signal)
      : Coordinator(World()), stop_signal_(std::move(stop_signal)) {}

  void at_step(int64_t) override {}
  void at_phase(const char*, int) override {}
  void enter_collective(const char*) override {}
  void leave_collective() override {}
  int64_t begin_file_call(const std::string&) override { return 0; }
  void end_file_call(int64_t) override {}

  void checkpoint() override {
    if (held_ == 0 && stopping()) throw Interrupted();
  }
  void hold() override { ++held_; }
  void release() override { --held_; }

  bool stopping() const override { return !stop_signal_().empty(); }
  std::string stop_reason() const override { return stop_signal_(); }

  void publish(const std::string& name, const std::string& value) override {
    const std::lock_guard lock(mutex_);
    values_[name] = value;
  }

  std::string wait_for(const std::string& name) override {
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::logic_error(fmt::format("nobody publishes \"{}\"", name));
    return found->second;
  }

  void barrier(const std::string&) override {}
  void announce_failure(const std::string&, int) override {}
  std::string explain(const std::string& error) override { return error; }
  int failure_code() const override { return 0; }
  void leave() override {}

 private:
  const StopSignal stop_signal_;
  int held_ = 0;
  std::mutex mutex_;
  std::map<std::string, std::string> values_;
};

}  // namespace

std::unique_ptr<Coordinator> make_solo_coordinator(StopSignal stop_signal) {
  return std::make_unique<SoloCoordinator>(std::move(stop_signal));
}

std::unique_ptr<Coordinator> make_solo_coordinator(const SignalWatch& signals) {
  return make_solo_coordinator([&signals] { return signals.stop_signal_name(); });
}

}  // namespace satune
