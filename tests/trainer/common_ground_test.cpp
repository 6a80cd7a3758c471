#include "trainer/common_ground.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

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

// A stale copy of the model on one machine: the ranks would train on a mixture.
TEST(CommonGround, WeightsAreCompared) {
  const TinyRun tiny, stale;
  const auto ground = [](const TinyRun& run, int64_t ranks) {
    RunPlan plan(run.settings("run"), ranks);
    return common_ground(plan, at::kCPU);
  };
  const std::filesystem::path file =
      std::filesystem::path(stale.settings("run").model_name_or_path) / "model.safetensors";
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(-1, std::ios::end);
  const int last = stream.get();
  stream.seekp(-1, std::ios::end);
  stream.put(static_cast<char>(last ^ 1));
  stream.close();
  EXPECT_THAT(differences(ground(stale, 2), ground(tiny, 2)),
              ElementsAre(StartsWith("model_name_or_path.weights: found \"fingerprint ")));
  EXPECT_THAT(differences(ground(stale, 1), ground(tiny, 1)), IsEmpty()) << "nobody to agree with";
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
