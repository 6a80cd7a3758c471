// What a rank takes of a machine that it shares.
#include "trainer/device.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "tests/temporary_directory.h"
#include "trainer/descriptor_limit.h"
#include "trainer/process_identity.h"

namespace satune::trainer_test {
namespace {

TEST(PeakMemory, BeginsAnew) {
  constexpr int64_t kBytes = 256 << 20;
  const at::Device cpu(at::kCPU);
  { const std::vector<char> touched(kBytes, 1); }
  const int64_t before = peak_memory_bytes(cpu);
  ASSERT_GT(before, kBytes);
  if (!begin_peak_memory(cpu)) GTEST_SKIP() << "/proc/self/clear_refs cannot be written";
  EXPECT_LT(peak_memory_bytes(cpu), before - kBytes / 2);
  { const std::vector<char> touched(kBytes / 2, 1); }
  EXPECT_GE(peak_memory_bytes(cpu), kBytes / 2);
}

TEST(ControlGroup, PagesOfFilesThatWereReadAreRoom) {
  const TemporaryDirectory group;
  EXPECT_EQ(room_in_control_group(group.path()), std::numeric_limits<int64_t>::max()) << "no group";
  group.write("memory.max", "max\n");
  group.write("memory.current", "700\n");
  EXPECT_EQ(room_in_control_group(group.path()), std::numeric_limits<int64_t>::max());
  group.write("memory.max", "1000\n");
  EXPECT_EQ(room_in_control_group(group.path()), 300);
  group.write("memory.stat", "anon 100\nfile 600\ninactive_file 500\nactive_file 100\n");
  EXPECT_EQ(room_in_control_group(group.path()), 800);
  group.write("memory.current", "2000\n");
  EXPECT_EQ(room_in_control_group(group.path()), 0);
}

TEST(ProcessorsOfRank, AreSharedUnlessALauncherHasBoundTheRank) {
  EXPECT_EQ(processors_of_rank(64, 64, 1), 64);
  EXPECT_EQ(processors_of_rank(64, 64, 8), 8) << "torchrun binds nothing";
  EXPECT_EQ(processors_of_rank(64, 8, 8), 8) << "srun --cpus-per-task=8";
  EXPECT_EQ(processors_of_rank(64, 2, 4), 2) << "mpirun --bind-to core, two threads a core";
  EXPECT_EQ(processors_of_rank(64, 1, 8), 1) << "mpirun --bind-to hwthread";
  EXPECT_EQ(processors_of_rank(64, 32, 4), 8) << "half a machine for four ranks that are not bound";
  EXPECT_EQ(processors_of_rank(16, 16, 4), 4) << "a container of 16 processors";
  EXPECT_EQ(processors_of_rank(4, 4, 4), 1) << "taskset -c 0-3 torchrun";
  EXPECT_EQ(processors_of_rank(2, 2, 5), 1);
}

TEST(ProcessorsOfRank, AskingWhatThereIsBindsNothing) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i) {
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  ::unsetenv("TORCHELASTIC_RUN_ID");
  EXPECT_GE(processors_before_binding(), CPU_COUNT(&before)) << "of the control group";
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&one, &after));
  sched_setaffinity(0, sizeof(before), &before);
}

TEST(CardOfRank, IsTheOneThereIsOrTheLocalRanks) {
  EXPECT_EQ(card_of_rank(8, 5), 5);
  EXPECT_EQ(card_of_rank(1, 0), 0);
  EXPECT_EQ(card_of_rank(1, 3), 0) << "srun --gpus-per-task=1";
  EXPECT_EQ(card_of_rank(2, 3), 3) << "too few: refused by choose_device()";
}

/// Puts the limit back.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(rlim_t soft) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit changed{soft, before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &changed);
  }
  ~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  DescriptorLimit(const DescriptorLimit&) = delete;
  DescriptorLimit& operator=(const DescriptorLimit&) = delete;
  static rlimit now() {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    return limit;
  }

 private:
  rlimit before_{};
};

TEST(Descriptors, AreAsManyAsTheProcessMayHave) {
  const DescriptorLimit low(100);
  ASSERT_EQ(DescriptorLimit::now().rlim_cur, 100U);
  raise_descriptor_limit();
  EXPECT_EQ(DescriptorLimit::now().rlim_cur, DescriptorLimit::now().rlim_max);
}

TEST(Descriptors, ThatAreUsedUpDoNotMakeAPeerGone) {
  ProcessIdentity self = this_process();
  ASSERT_EQ(state_of(self, self.machine), ProcessState::kRunning);
  {
    const DescriptorLimit none(0);
    EXPECT_EQ(state_of(self, self.machine), ProcessState::kElsewhere);
  }
  self.pid = int64_t{1} << 30;  // above every kernel's largest
  EXPECT_EQ(state_of(self, self.machine), ProcessState::kGone);
}

}  // namespace
}  // namespace satune::trainer_test
