// Wherever a rank may have to wait for others, its heartbeat says in what, and an error says for whom.
#include "trainer/collective.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <new>
#include <set>

#include "tests/trainer/rank_threads.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/evaluation_loss.h"
#include "trainer/failure_report.h"
#include "trainer/resume.h"
#include "trainer/step.h"

namespace satune::trainer_test {
namespace {

using ::testing::IsSupersetOf;

/// Notes what is named. When something fails, rank 1 was the cause.
class NamingCoordinator : public ForwardingCoordinator {
 public:
  using ForwardingCoordinator::ForwardingCoordinator;
  void enter_collective(const char* what) override {
    names.insert(what);
    named = true;
  }
  void leave_collective() override { named = false; }
  std::string explain(const std::string&) override { return "rank 1 is gone"; }
  int failure_code() const override { return kExitEnvironment; }

  /// Something that may have to wait for others.
  void may_wait(const std::string& what) {
    if (!named) unnamed.insert(what);
  }
  std::set<std::string> names, unnamed;
  bool named = false;
};

class Over : public Work {
 public:
  explicit Over(NamingCoordinator& coordinator) : coordinator_(coordinator) {}
  void wait() override { coordinator_.may_wait("wait"); }

 private:
  NamingCoordinator& coordinator_;
};

/// Rank 0 of two, of which the other has only zeros. As on a card, nothing is waited for in wait().
class HalfGroup : public ProcessGroup {
 public:
  explicit HalfGroup(NamingCoordinator& coordinator) : ProcessGroup({0, 2}), coordinator_(coordinator) {}

  std::unique_ptr<Work> reduce_scatter(const at::Tensor& parts, const at::Tensor&, const at::Tensor& sum,
                                       bool accumulate) override {
    begin("reduce_scatter");
    if (!accumulate) sum.zero_();
    sum.add_(parts.narrow(0, 0, sum.numel()));
    return std::make_unique<Over>(coordinator_);
  }
  std::unique_ptr<Work> all_gather(const at::Tensor& whole, const at::Tensor& part) override {
    begin("all_gather");
    const at::Tensor own = whole.narrow(0, 0, part.numel());
    if (own.const_data_ptr() != part.const_data_ptr()) own.copy_(part);
    whole.narrow(0, part.numel(), part.numel()).zero_();
    return std::make_unique<Over>(coordinator_);
  }
  std::vector<double> exchange(std::span<const double> values) override {
    begin("exchange");
    std::vector<double> all(values.begin(), values.end());
    all.resize(2 * values.size(), not_finite ? std::numeric_limits<double>::quiet_NaN() : 0);
    return all;
  }
  at::Tensor gather(const at::Tensor& numbers) override {
    begin("gather");
    const double other = not_finite ? std::numeric_limits<double>::quiet_NaN() : 0;
    return at::cat({numbers, at::full_like(numbers, other)});
  }
  bool broken = false, not_finite = false;

 private:
  void begin(const char* what) {
    coordinator_.may_wait(what);
    if (broken) throw EnvironmentError("Connection closed by peer");
  }
  NamingCoordinator& coordinator_;
};

struct HalfARun {
  HalfARun(const TinyRun& tiny, int stage)
      : settings(tiny.settings("unused")),
        plan(settings, 2),
        model(plan.config(), plan.trained_mask(), at::kFloat, at::kCPU, parameter_layout(stage, 2)),
        sharding(model, groups, coordinator, stage, at::kFloat),
        optimizer(model.weights().trained, sharding.weight_shards(), AdamWOptions(settings),
                  sharding.optimizer_owner(), at::kCPU),
        step(model, sharding, optimizer, groups, coordinator, plan.train(), settings,
             std::vector<Recording>(4, Recording::kKeep)) {
    load_pretrained(optimizer, sharding, Checkpoint(plan.model_directory()));
    sharding.publish_weights();
  }
  Settings settings;
  std::unique_ptr<Coordinator> solo = make_solo_coordinator([] { return std::string(); });
  NamingCoordinator coordinator{*solo};
  HalfGroup group{coordinator};
  std::unique_ptr<ProcessGroup> alone = make_local_group();
  ProcessGroups groups{group, group, *alone};
  RunPlan plan;
  Llama model;
  Sharding sharding;
  AdamW optimizer;
  TrainingStep step;
};

/// While it lives, numbers that this thread reads back from a tensor are waits.
class ReadsAreWaits {
 public:
  explicit ReadsAreWaits(NamingCoordinator& coordinator)
      : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&ReadsAreWaits::see))) {
    listener() = &coordinator;
  }
  ~ReadsAreWaits() {
    at::removeCallback(handle_);
    listener() = nullptr;
  }
  ReadsAreWaits(const ReadsAreWaits&) = delete;
  ReadsAreWaits& operator=(const ReadsAreWaits&) = delete;
  static int64_t& seen() {
    static thread_local int64_t count = 0;
    return count;
  }

 private:
  static NamingCoordinator*& listener() {
    static thread_local NamingCoordinator* coordinator = nullptr;
    return coordinator;
  }
  static std::unique_ptr<at::ObserverContext> see(const at::RecordFunction& function) {
    if (std::string_view(function.name()) == "aten::item") {
      ++seen();
      listener()->may_wait("aten::item");
    }
    return nullptr;
  }
  at::CallbackHandle handle_;
};

class CollectiveNames : public ::testing::TestWithParam<int> {};

// Seen on cards: wait() returns at once, the host stands in item(), and a stall has no name and no end.
TEST_P(CollectiveNames, EveryWaitHasAName) {
  const TinyRun tiny;
  HalfARun run(tiny, GetParam());
  const int64_t seen = ReadsAreWaits::seen();
  {
    const ReadsAreWaits reads(run.coordinator);
    EXPECT_TRUE(run.step.run({0, 0, 8}, 0.01, 1).updated);
    evaluation_loss(run.model, run.plan.train(), 4, run.group, run.coordinator, run.sharding);
    run.group.not_finite = true;
    EXPECT_FALSE(run.step.find_nonfinite_records({0, 0, 1}).empty());
  }
  EXPECT_GT(ReadsAreWaits::seen(), seen) << "the test does not see what is read back";
  EXPECT_EQ(run.coordinator.unnamed, std::set<std::string>());
  // On the CPU these wait for nothing.
  EXPECT_THAT(run.coordinator.names,
              IsSupersetOf({"upload of a micro-batch", "norm of the gradients", "upload of a batch"}));
  EXPECT_FALSE(run.coordinator.named);
}

// Gloo notices a broken connection where a collective starts.
TEST_P(CollectiveNames, WhatFailsAtItsStartNamesTheRankThatIsGone) {
  const TinyRun tiny;
  HalfARun run(tiny, GetParam());
  run.group.broken = true;
  const auto expect_named = [](const auto& call) {
    try {
      call();
      ADD_FAILURE() << "no error";
    } catch (const RunFailed& error) {
      EXPECT_STREQ(error.what(), "rank 1 is gone");
    }
  };
  expect_named([&] { run.step.run({0, 0, 8}, 0.01, 1); });
  expect_named([&] { run.step.find_nonfinite_records({0, 0, 1}); });
  if (GetParam() == 0) expect_named([&] { run.sharding.optimizer_gradients(); });
  if (GetParam() == 1) expect_named([&] { run.sharding.publish_weights(); });
}

INSTANTIATE_TEST_SUITE_P(Zero, CollectiveNames, ::testing::Values(0, 1, 2, 3));

/// What a user would see of an error that `call` throws in a collective of ranks that are all alive.
template <typename Call>
Failure failure_in_collective(const Call& call) {
  const auto solo = make_solo_coordinator([] { return std::string(); });
  try {
    in_collective(*solo, "all-gather of parameters", call);
  } catch (...) {
    return current_failure();
  }
  return {"no error", kExitOk};
}

TEST(InCollective, WithAllRanksAliveTheErrorHasOneLineAndTheName) {
  const Failure network =
      failure_in_collective([] { C10_THROW_ERROR(DistBackendError, "out of luck\nat frame #0"); });
  EXPECT_EQ(network.message, "all-gather of parameters: out of luck");
  EXPECT_EQ(network.exit_code, kExitEnvironment);
  const Failure peer =
      failure_in_collective([] { throw EnvironmentError("rank 0 sends to rank 1: closed"); });
  EXPECT_EQ(peer.message, "all-gather of parameters: rank 0 sends to rank 1: closed");
  EXPECT_EQ(peer.exit_code, kExitEnvironment);
}

// Exit code 3 says that the machine failed, and a launcher starts the ranks again.
TEST(InCollective, WhatIsNoFaultOfTheMachineKeepsItsKind) {
  const Failure shape = failure_in_collective([] { TORCH_CHECK(false, "shapes [3] and [4]"); });
  EXPECT_EQ(shape.message, "all-gather of parameters: shapes [3] and [4]");
  EXPECT_EQ(shape.exit_code, kExitFailure);
  const Failure input = failure_in_collective([] { throw bad_input("train.json", "a", "b"); });
  EXPECT_EQ(input.message, "train.json: found a, expected b");
  EXPECT_EQ(input.exit_code, kExitBadInput);
}

// Who catches it names what did not fit: TrainingStep::rehearse() the micro-batch.
TEST(InCollective, MemoryThatRanOutStaysThat) {
  const auto solo = make_solo_coordinator([] { return std::string(); });
  const auto expect_out_of_memory = [&](const auto& call) {
    try {
      in_collective(*solo, "all-gather of parameters", call);
      ADD_FAILURE() << "no error";
    } catch (...) {
      EXPECT_TRUE(out_of_memory());
    }
  };
  expect_out_of_memory([] { throw std::bad_alloc(); });
  expect_out_of_memory([] { C10_THROW_ERROR(OutOfMemoryError, "CUDA out of memory"); });
  expect_out_of_memory([] { TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory"); });
}

// Whatever an error looks like from here: when a rank is gone, that is the cause.
TEST(InCollective, ALostRankIsTheCauseOfWhatFollows) {
  const auto solo = make_solo_coordinator([] { return std::string(); });
  NamingCoordinator coordinator(*solo);
  try {
    in_collective(coordinator, "all-gather of parameters", [] { TORCH_CHECK(false, "the group has ended"); });
    FAIL();
  } catch (const RunFailed& error) {
    EXPECT_STREQ(error.what(), "rank 1 is gone");
    EXPECT_EQ(error.exit_code(), kExitEnvironment);
  }
}

}  // namespace
}  // namespace satune::trainer_test
