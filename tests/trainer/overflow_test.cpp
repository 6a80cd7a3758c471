// fp16 gradients that overflow at the first loss scales: updates left out, the scale halved, the run goes on,
// and a continued run takes the same way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "data/files/error.h"
#include "tests/trainer/signal_at_snapshot.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/loss_scale.h"
#include "trainer/run_state.h"
#include "trainer/snapshot.h"

namespace satune::trainer_test {
namespace {

const std::vector<std::string> kFp16 = {"precision=fp16", "max_steps=12", "save_steps=1",
                                        "save_total_limit=30"};

RunState state_after(const std::filesystem::path& run_folder, int64_t step) {
  const auto file = run_folder / kSnapshotFolder / snapshot_name(step) / kStateFile;
  return parse_run_state(parse_json(content_of(file), file.string()).at("progress"), file.string());
}

TEST(Fp16Overflow, LeavesUpdatesOutUntilTheScaleFits) {
  const TinyRun tiny(40, /*tied=*/false, /*head_scale=*/400);
  ASSERT_EQ(tiny.train("run", kFp16), kExitOk);
  const std::vector<Json> rows = metric_rows(tiny.output("run"));
  ASSERT_EQ(rows.size(), 12U);
  const double initial = LossScale::initial(Precision::kFp16).value;
  int64_t overflows = 0;
  for (int64_t step = 1; step <= 12; ++step) {
    const bool overflowed = rows[step - 1].at("grad_norm").is_null();
    EXPECT_FALSE(rows[step - 1].at("loss").is_null()) << step;
    overflows += overflowed ? 1 : 0;
    const RunState state = state_after(tiny.output("run"), step);
    EXPECT_EQ(state.overflow_steps, overflows) << step;
    EXPECT_EQ(state.updates, step - overflows) << step;
    EXPECT_EQ(state.loss_scale.value, initial / std::pow(2, overflows)) << step;
    EXPECT_EQ(state.skipped_steps, 0) << step;
    if (step == 1) continue;
    const bool unchanged =
        snapshot_tensors(tiny.output("run"), step) == snapshot_tensors(tiny.output("run"), step - 1);
    EXPECT_EQ(unchanged, overflowed) << "weights and moments after step " << step;
  }
  EXPECT_TRUE(rows[0].at("grad_norm").is_null());
  EXPECT_GE(overflows, 2);
  EXPECT_FALSE(rows[11].at("grad_norm").is_null());
  EXPECT_LT(rows[11].at("loss").get<double>(), rows[0].at("loss").get<double>());
}

TEST(Fp16Overflow, IsContinuedBitwise) {
  const TinyRun tiny(40, /*tied=*/false, /*head_scale=*/400);
  ASSERT_EQ(tiny.train("whole", kFp16), kExitOk);
  for (const int64_t stop : {1, 2, 7}) {
    SignalAtSnapshot ops(stop, SIGTERM);
    ASSERT_EQ(tiny.train("parts", kFp16, ops), kExitResumable) << "stop after step " << stop;
  }
  ASSERT_EQ(tiny.train("parts", kFp16), kExitOk);
  EXPECT_EQ(repeatable_rows(tiny.output("parts")), repeatable_rows(tiny.output("whole")));
  EXPECT_TRUE(snapshot_tensors(tiny.output("parts"), 12) == snapshot_tensors(tiny.output("whole"), 12));
  const RunState parts = state_after(tiny.output("parts"), 12), whole = state_after(tiny.output("whole"), 12);
  EXPECT_EQ(parts.overflow_steps, whole.overflow_steps);
  EXPECT_EQ(parts.loss_scale.value, whole.loss_scale.value);
  EXPECT_EQ(parts.loss_scale.good_steps, whole.loss_scale.good_steps);
}

}  // namespace
}  // namespace satune::trainer_test
