// What the launcher is made of: cards, lines, causes, arguments.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/files/error.h"
#include "tests/temporary_directory.h"
#include "trainer/commands/rank_options.h"
#include "trainer/output_lines.h"
#include "trainer/rank_failure.h"
#include "trainer/visible_cards.h"

namespace satune::trainer_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(VisibleCards, AreTheDeviceFilesThatCudaWouldShow) {
  const TemporaryDirectory devices;
  EXPECT_EQ(count_visible_cards(devices.path(), std::nullopt), 0);
  EXPECT_EQ(count_visible_cards(devices / "missing", std::nullopt), 0);
  for (const char* name : {"nvidia0", "nvidia1", "nvidia2", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia",
                           "nvidia1x", "null"}) {
    devices.write(name, "");
  }
  const auto visible = [&](const char* value) { return count_visible_cards(devices.path(), value); };
  EXPECT_EQ(count_visible_cards(devices.path(), std::nullopt), 4);
  EXPECT_EQ(visible(""), 0);
  EXPECT_EQ(visible("-1"), 0);
  EXPECT_EQ(visible("NoDevFiles"), 0);
  EXPECT_EQ(visible("2"), 1);
  EXPECT_EQ(visible("3,1"), 2);
  EXPECT_EQ(visible("0, 1, 2"), 3);
  EXPECT_EQ(visible("0,1,4,2"), 2) << "the list ends at a card that is not there";
  EXPECT_EQ(visible("0,-1,2"), 1);
  EXPECT_EQ(visible("1,1,2"), 1);
  EXPECT_EQ(visible("0,1x"), 1);
  EXPECT_EQ(visible("GPU-5fb1cc38,GPU-2f00aab1"), 2);
  EXPECT_EQ(visible("GPU-a,GPU-b,GPU-c,GPU-d,GPU-e"), 4) << "never more than there are";
  EXPECT_EQ(visible("MIG-a,MIG-b"), 1);
}

TEST(OutputLines, ComeWhole) {
  std::vector<std::string> lines;
  OutputLines output([&](std::string_view line) { lines.emplace_back(line); });
  output.add("a");
  output.add("b\nc");
  EXPECT_THAT(lines, ElementsAre("ab\n"));
  output.add("\n\nd\ne");
  EXPECT_THAT(lines, ElementsAre("ab\n", "c\n", "\n", "d\n"));
  output.finish();
  output.finish();
  EXPECT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines.back(), "e\n");
}

TEST(OutputLines, WithoutAnEndComeInPieces) {
  std::vector<std::string> lines;
  OutputLines output([&](std::string_view line) { lines.emplace_back(line); });
  for (size_t sent = 0; sent < OutputLines::kLongest; sent += 1024) output.add(std::string(1024, 'x'));
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0].size(), OutputLines::kLongest + 1);
}

RankFailure failure(int64_t rank, int exit_code, int signal, int64_t noticed, double time,
                    const std::string& message = "") {
  return {rank, {exit_code, signal}, noticed, time, message};
}

TEST(FirstCause, OfSeveralFailures) {
  const auto cause = [](const std::vector<RankFailure>& failures) { return first_cause(failures).rank; };
  // Noticed together: the killed one leaves no file, so its time is later than it was.
  EXPECT_EQ(cause({failure(0, 3, 0, 1, 10.0, "rank 1 lost"), failure(1, 0, 9, 1, 10.5)}), 1);
  EXPECT_EQ(cause({failure(1, 0, 9, 1, 10.5), failure(0, 3, 0, 2, 10.1, "rank 1 lost")}), 1);
  // A crash on the way out, after another rank had failed.
  EXPECT_EQ(cause({failure(0, 3, 0, 1, 10.0, "disk full"), failure(1, 0, 11, 2, 10.5)}), 0);
  // Earliest file, not earliest end; an end without a file counts when it was noticed.
  EXPECT_EQ(cause({failure(0, 3, 0, 1, 10.2, "rank 2 failed"), failure(2, 1, 0, 2, 10.1, "first")}), 2);
  EXPECT_EQ(cause({failure(0, 3, 0, 1, 10.3), failure(2, 1, 0, 2, 10.1, "first")}), 2);
  // What a rank says of itself is worth more than that a signal ended it.
  EXPECT_EQ(cause({failure(0, 0, 6, 1, 10.3, "second"), failure(2, 1, 0, 1, 10.1, "first")}), 2);
}

TEST(FirstCause, IsNamedOnce) {
  EXPECT_EQ(named_reason(failure(1, 3, 0, 1, 1, "disk full")), "rank 1: disk full");
  EXPECT_EQ(named_reason(failure(1, 3, 0, 1, 1, "rank 1 (host a, pid 7) failed: disk full")),
            "rank 1 (host a, pid 7) failed: disk full");
  EXPECT_EQ(named_reason(failure(0, 3, 0, 1, 1, "rank 1 (host a, pid 7) is lost")),
            "rank 0: rank 1 (host a, pid 7) is lost");
  EXPECT_EQ(named_reason(failure(1, 0, 9, 1, 1)), "rank 1: killed by SIGKILL");
}

TEST(FirstCause, IsReadFromTheErrorFile) {
  const TemporaryDirectory folder;
  const auto described = [&](const std::string& content) {
    return reason(describe_failure(1, {3, 0}, 0, folder.write("error.json", content)));
  };
  EXPECT_EQ(described(R"({"message": {"message": "disk\nfull", "extraInfo": {"timestamp": "1"}}})"),
            "disk full");
  for (const char* useless : {"", "{", "[]", R"({"message": 3})", R"({"message": {"message": 3}})"}) {
    EXPECT_EQ(described(useless), "exit code 3 without a message") << useless;
  }
  EXPECT_EQ(reason(describe_failure(1, {0, 9}, 0, folder / "missing")), "killed by SIGKILL");
  EXPECT_EQ(exit_code_of(describe_failure(1, {0, 9}, 0, folder / "missing")), kExitEnvironment);
}

TEST(RankOptions, AreLeftOutOfARanksArguments) {
  EXPECT_THAT(without_rank_options({"--log-level", "warn", "train", "c.json", "--nproc-per-node", "4", "a=b",
                                    "--max-restarts=3", "--resume", "auto"}),
              ElementsAre("--log-level", "warn", "train", "c.json", "a=b", "--resume", "auto"));
  EXPECT_THAT(without_rank_options({"train", "c.json", "--nproc-per-node=2"}),
              ElementsAre("train", "c.json"));
  EXPECT_THAT(without_rank_options({}), ElementsAre());
}

Settings settings_with(const std::string& resume, DeviceChoice device = DeviceChoice::kCpu) {
  Settings settings;
  settings.resume = resume;
  settings.device = device;
  return settings;
}

std::string refusal(const RankOptions& options, const std::string& resume, bool launched) {
  RankEnvironment environment;
  environment.launched = launched;
  environment.world = {1, launched ? 4 : 1};
  try {
    check_rank_options(options, settings_with(resume), environment);
  } catch (const BadInput& error) {
    return error.what();
  }
  return "";
}

TEST(RankOptions, ThatWouldNotDoWhatTheySayAreRefused) {
  EXPECT_EQ(refusal({4, 3}, "auto", false), "");
  EXPECT_EQ(refusal({4, 0}, "never", false), "");
  EXPECT_EQ(refusal({}, "never", true), "");
  EXPECT_THAT(refusal({0, {}}, "auto", false), HasSubstr("--nproc-per-node: found 0"));
  EXPECT_THAT(refusal({100000, {}}, "auto", false),
              HasSubstr("--nproc-per-node: found 100000, expected at most "));
  EXPECT_THAT(refusal({2, -1}, "auto", false), HasSubstr("--max-restarts: found -1"));
  EXPECT_THAT(refusal({2, 1}, "never", false), HasSubstr("resume auto"));
  EXPECT_THAT(refusal({4, {}}, "auto", true), HasSubstr("--nproc-per-node: found rank 1 of 4"));
  EXPECT_THAT(refusal({{}, 0}, "auto", true), HasSubstr("--max-restarts"));
}

TEST(RankOptions, SayWhetherALauncherIsNeeded) {
  EXPECT_EQ(process_count({}, settings_with("auto")), 1);
  EXPECT_EQ(process_count({3, {}}, settings_with("auto")), 3);
  EXPECT_FALSE(needs_launcher({}, 1));
  EXPECT_TRUE(needs_launcher({}, 2));
  EXPECT_TRUE(needs_launcher({1, 2}, 1));
  EXPECT_FALSE(needs_launcher({1, 0}, 1));
}

}  // namespace
}  // namespace satune::trainer_test
