// Ranks as threads of one process: each with its own coordinator and Gloo group over one store in memory.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "trainer/coordinator.h"
#include "trainer/process_group.h"
#include "trainer/ranks.h"

namespace satune::trainer_test {

struct RankOfTest {
  World world;
  std::unique_ptr<Coordinator> coordinator;
  std::unique_ptr<ProcessGroup> all, shards, replicas;
  ProcessGroups groups() const { return {*all, shards ? *shards : *all, *replicas}; }
};

/// Runs `body` on every rank at once and returns when all are done; what one throws is thrown again.
/// `shard_group_size` 0 = all ranks in one.
void run_as_ranks(int64_t count, int64_t shard_group_size, const std::function<void(RankOfTest&)>& body);
void run_as_ranks(int64_t count, const std::function<void(RankOfTest&)>& body);

/// Passes everything on; tests override single calls.
class ForwardingCoordinator : public Coordinator {
 public:
  explicit ForwardingCoordinator(Coordinator& inner) : Coordinator(inner.world()), inner_(inner) {}
  void at_step(int64_t step) override { inner_.at_step(step); }
  void at_phase(const char* phase, int segment) override { inner_.at_phase(phase, segment); }
  void checkpoint() override { inner_.checkpoint(); }
  void hold() override { inner_.hold(); }
  void release() override { inner_.release(); }
  void enter_collective(const char* what) override { inner_.enter_collective(what); }
  void leave_collective() override { inner_.leave_collective(); }
  int64_t begin_file_call(const std::string& what) override { return inner_.begin_file_call(what); }
  void end_file_call(int64_t call) override { inner_.end_file_call(call); }
  bool stopping() const override { return inner_.stopping(); }
  std::string stop_reason() const override { return inner_.stop_reason(); }
  void publish(const std::string& name, const std::string& value) override { inner_.publish(name, value); }
  std::string wait_for(const std::string& name) override { return inner_.wait_for(name); }
  void barrier(const std::string& name) override { inner_.barrier(name); }
  void announce_failure(const std::string& message, int code) override {
    inner_.announce_failure(message, code);
  }
  std::string explain(const std::string& error) override { return inner_.explain(error); }
  int failure_code() const override { return inner_.failure_code(); }
  void leave() override { inner_.leave(); }

 private:
  Coordinator& inner_;
};

}  // namespace satune::trainer_test
