#include "trainer/common_ground.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/files/error.h"
#include "tests/trainer/rank_threads.h"
#include "tests/trainer/tiny_run.h"

namespace satune::trainer_test {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;

TEST(CommonGround, DifferencesHaveKeyAndBothValues) {
  const Json leaders = {
      {"device", "cuda"}, {"sharing", {{"layers", "2-3"}, {"anchor", "before"}}}, {"seed", 1}};
  EXPECT_THAT(differences(leaders, leaders), IsEmpty());
  const Json mine = {{"device", "cpu"}, {"sharing", {{"layers", "1-3"}, {"anchor", "before"}}}};
  EXPECT_THAT(differences(mine, leaders),
              ElementsAre(R"(device: found "cpu", expected "cuda")",
                          R"(sharing.layers: found "1-3", expected "2-3")", "seed: found null, expected 1"));
}

TEST(CommonGround, IsWhatIsTrainedAndNotWhereThingsLie) {
  const TinyRun tiny, same, more(41);
  const auto ground = [](const TinyRun& run, const std::vector<std::string>& overrides = {}) {
    RunPlan plan(run.settings("run", overrides), 2);
    return common_ground(plan, at::kCPU);
  };
  EXPECT_THAT(differences(ground(same, {"num_threads=3"}), ground(tiny)), IsEmpty())
      << "other folders, the same data";
  // The fingerprints alone, of what is trained on and what is kept for evaluation.
  EXPECT_THAT(differences(ground(more), ground(tiny)),
              ElementsAre(StartsWith("train_file: "), StartsWith("eval_file: ")));
  EXPECT_THAT(differences(ground(tiny, {"max_steps=6"}), ground(tiny, {"max_steps=4"})),
              ElementsAre("max_steps: found 6, expected 4", "total steps: found 6, expected 4"));
}

TEST(CommonGround, ARankThatDiffersNamesItself) {
  try {
    run_as_ranks(2, [](RankOfTest& rank) {
      check_common_ground({{"device", rank.world.rank == 0 ? "cuda" : "cpu"}}, *rank.coordinator);
    });
    FAIL();
  } catch (const BadInput& error) {
    EXPECT_STREQ(error.what(), R"(rank 1 is not set up as rank 0 is: device: found "cpu", expected "cuda")");
  } catch (const RunFailed& error) {  // what rank 0 learns
    EXPECT_THAT(error.what(), ::testing::HasSubstr("rank 1 is not set up as rank 0 is"));
  }
}

}  // namespace
}  // namespace satune::trainer_test
