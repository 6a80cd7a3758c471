#include "trainer/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "tests/temporary_directory.h"
#include "trainer/item_progress.h"

namespace satune::progress_test {
namespace {

using ::testing::HasSubstr;

StepMetrics metrics_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.loss = 1.23456;
  m.grad_norm = 0.5;
  m.learning_rate = 2e-5;
  m.tokens_per_s = 12345;
  m.step_seconds = 2;
  m.epoch = 0.5;
  return m;
}

TEST(Progress, Durations) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(42), "0:42");
  EXPECT_EQ(format_duration(725), "12:05");
  EXPECT_EQ(format_duration(3599.6), "1:00:00");
  EXPECT_EQ(format_duration(11229), "3:07:09");
  EXPECT_EQ(format_duration(2 * 86400 + 4 * 3600 + 59), "2d 4h");
  EXPECT_EQ(format_duration(0.0 / 0.0), "?");
}

TEST(Progress, CountsAndBytes) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(999'700), "1.00M");
  EXPECT_EQ(format_count(8.03e9), "8.03G");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(16e9), "14.9 GiB");
  EXPECT_EQ(format_bytes(1024.0 * 1024), "1.00 MiB");
}

TEST(Progress, LineNamesEverything) {
  EXPECT_EQ(progress_line(metrics_of(3), 10, 14),
            "step 3/10  epoch 0.50  loss 1.2346  12.3k tok/s  grad_norm 0.5  lr 2e-05  left 0:14");
  StepMetrics m = metrics_of(3);
  m.eval_loss = 2;
  EXPECT_THAT(progress_line(m, 10, 14), HasSubstr("eval_loss 2.0000"));
}

TEST(Progress, BarFillsItsWidthAndNeverOverflows) {
  for (const int width : {0, 10, 40, 60, 80, 200}) {
    for (const int64_t step : {0, 1, 5, 10}) {
      const std::string bar = progress_bar(metrics_of(step), 10, 14, width);
      EXPECT_LE(bar.size(), static_cast<size_t>(width));
      if (width >= 80) {
        EXPECT_EQ(bar.size(), static_cast<size_t>(width));
      }
    }
  }
  const std::string bar = progress_bar(metrics_of(5), 10, 14, 100);
  const std::string cells = bar.substr(bar.find('[') + 1, bar.find(']') - bar.find('[') - 1);
  EXPECT_EQ(cells, std::string(cells.size() / 2, '#') + std::string(cells.size() - cells.size() / 2, '.'));
  EXPECT_THAT(bar, HasSubstr(" 50% ["));
}

TEST(Progress, PlainLinesEveryLoggingStepsAndForTheLast) {
  const TemporaryDirectory folder;
  std::FILE* out = std::fopen((folder / "out").c_str(), "w");
  {
    Progress progress(7, 3, out);
    for (int64_t step = 1; step <= 7; ++step) progress.step(metrics_of(step));
    progress.clear();
  }
  std::fclose(out);
  const std::string text = content_of(folder / "out");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_THAT(text, HasSubstr("step 3/7"));
  EXPECT_THAT(text, HasSubstr("step 6/7"));
  EXPECT_THAT(text, HasSubstr("step 7/7"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("\r")));
}

/// Text of a pseudo terminal up to the end of so many lines.
std::string read_lines(int terminal, int lines) {
  // The kernel passes it on in pieces, in its own time.
  std::string text;
  pollfd ready{terminal, POLLIN, 0};
  while (std::count(text.begin(), text.end(), '\n') < lines && ::poll(&ready, 1, 10'000) == 1) {
    char buffer[4096];
    const ssize_t n = read(terminal, buffer, sizeof(buffer));
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

TEST(ItemProgress, CountsWhatAllRanksHaveDone) {
  int terminal = -1, ours = -1;
  winsize size{24, 120, 0, 0};
  if (openpty(&ours, &terminal, nullptr, nullptr, &size) != 0) GTEST_SKIP() << "no pseudo terminal here";
  std::FILE* out = fdopen(terminal, "w");
  constexpr auto kPause = std::chrono::milliseconds(120);  // longer than between two bars
  std::vector<int64_t> told;
  {
    ItemProgress leader("mmlu", 20, 4, true, out);
    leader.with_others([] { return ItemCount{5, 100}; }, {});
    std::this_thread::sleep_for(kPause);
    leader.item(10);
    std::this_thread::sleep_for(kPause);
    leader.look();
    leader.all_done();
    ItemProgress other("mmlu", 20, 4, false, out);
    other.with_others({}, [&](ItemCount mine) { told.push_back(mine.items); });
    other.item(10);
    std::this_thread::sleep_for(5 * kPause);
    other.item(10);
  }
  std::fflush(out);
  const std::string text = read_lines(ours, 1);
  std::fclose(out);
  close(ours);
  EXPECT_THAT(text, HasSubstr("mmlu  [############............] 10/20"));
  EXPECT_THAT(text, HasSubstr(" 20/20 "));
  EXPECT_EQ(told, std::vector<int64_t>{2});
}

TEST(Progress, ABarOnATerminal) {
  int terminal = -1, ours = -1;
  winsize size{24, 90, 0, 0};
  if (openpty(&ours, &terminal, nullptr, nullptr, &size) != 0) GTEST_SKIP() << "no pseudo terminal here";
  std::FILE* out = fdopen(terminal, "w");
  {
    Progress progress(3, 1, out);
    progress.step(metrics_of(1));
    progress.clear();
    StepMetrics evaluated = metrics_of(2);
    evaluated.eval_loss = 2;
    progress.step(evaluated);
    progress.step(metrics_of(3));
  }
  std::fflush(out);
  const std::string text = read_lines(ours, 2);
  std::fclose(out);
  close(ours);
  EXPECT_THAT(text, HasSubstr("\r\033[K 33% ["));
  EXPECT_THAT(text, HasSubstr("step 2/3")) << "an evaluation's line stays";
  EXPECT_THAT(text, HasSubstr("\r\033[K100% ["));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << "the evaluation's line, and the end";
  EXPECT_EQ(text.back(), '\n');
}

}  // namespace
}  // namespace satune::progress_test
