#include "trainer/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cmath>
#include <limits>
#include <sstream>

#include "data/files/error.h"
#include "data/files/json.h"
#include "tests/temporary_directory.h"
#include "trainer/append_file.h"

namespace satune::metrics_test {
namespace {

using ::testing::HasSubstr;

// A disk with room for `room` more bytes: writes are cut short, then refused, as Linux does it.
class FullDisk : public FileOps {
 public:
  explicit FullDisk(size_t room) : room_(room) {}
  ssize_t write(int fd, const void* data, size_t size) override {
    if (room_ == 0) {
      errno = ENOSPC;
      return -1;
    }
    const ssize_t written = FileOps::write(fd, data, std::min(size, room_));
    room_ -= static_cast<size_t>(written);
    return written;
  }
  void free_space(size_t room) { room_ = room; }

 private:
  size_t room_;
};

// Refuses to open or create anything.
class ReadOnlyDisk : public FileOps {
 public:
  int open(const char*, int, unsigned) override {
    errno = EROFS;
    return -1;
  }
};

// What was logged while it lives.
class CapturedLog {
 public:
  CapturedLog() : before_(spdlog::default_logger()) {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("captured", sink));
  }
  ~CapturedLog() { spdlog::set_default_logger(before_); }
  size_t count(const std::string& word) const {
    const std::string text = text_.str();
    size_t n = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
    return n;
  }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_;
};

StepMetrics metrics_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.loss = 1.0 / static_cast<double>(step);
  m.grad_norm = 0.1f;
  m.learning_rate = 2e-5;
  m.num_tokens = 100 * step;
  return m;
}

std::vector<int64_t> steps_of(const std::filesystem::path& file) {
  std::vector<int64_t> steps;
  std::istringstream text(content_of(file));
  for (std::string line; std::getline(text, line);) steps.push_back(parse_json(line, "row")["step"]);
  return steps;
}

TEST(Metrics, RowHasTheKeysOfTheContractAndExactNumbers) {
  StepMetrics m = metrics_of(3);
  m.mean_token_accuracy = 0.25;
  const Json row = parse_json(metrics_row(m), "row");
  std::vector<std::string> keys;
  for (const auto& [key, value] : row.items()) keys.push_back(key);
  EXPECT_THAT(keys, ::testing::ElementsAre("step", "loss", "grad_norm", "learning_rate", "epoch",
                                           "num_tokens", "mean_token_accuracy", "tokens_per_s", "mfu",
                                           "peak_memory_bytes", "step_seconds"));
  EXPECT_EQ(row["loss"].get<double>(), 1.0 / 3.0);
  EXPECT_EQ(row["grad_norm"].get<double>(), double(0.1f));
  EXPECT_EQ(row["num_tokens"], 300);
  EXPECT_TRUE(row["mfu"].is_null());
  m.eval_loss = 0.5;
  m.mfu = 0.4;
  EXPECT_EQ(parse_json(metrics_row(m), "row")["eval_loss"], 0.5);
  EXPECT_EQ(parse_json(metrics_row(m), "row")["mfu"], 0.4);
}

// rival: invalid JSON in the log when a loss is NaN.
TEST(Metrics, RowIsValidJsonWhenNumbersAreNotFinite) {
  StepMetrics m = metrics_of(1);
  m.loss = std::numeric_limits<double>::quiet_NaN();
  m.grad_norm = std::numeric_limits<double>::infinity();
  m.eval_loss = -std::numeric_limits<double>::infinity();
  const Json row = parse_json(metrics_row(m), "row");
  EXPECT_TRUE(row["loss"].is_null());
  EXPECT_TRUE(row["grad_norm"].is_null());
  EXPECT_TRUE(row["eval_loss"].is_null());
}

TEST(Metrics, EachStepIsOnDiskWhenRecordReturns) {
  const TemporaryDirectory run;
  MetricsLog log(run.path(), 0);
  for (int64_t step = 1; step <= 3; ++step) {
    log.record(metrics_of(step));
    EXPECT_EQ(steps_of(run / "metrics.jsonl").size(), static_cast<size_t>(step));
  }
}

TEST(Metrics, ResumeCutsLaterRowsTornLinesAndRepeats) {
  const TemporaryDirectory run;
  std::string text;
  for (const int64_t step : {1, 2, 2, 3, 4, 5}) text += metrics_row(metrics_of(step)) + "\n";
  run.write("metrics.jsonl", text + R"({"step": 6, "lo)");
  MetricsLog log(run.path(), 3);
  EXPECT_EQ(steps_of(run / "metrics.jsonl"), (std::vector<int64_t>{1, 2, 3}));
  log.record(metrics_of(4));
  EXPECT_EQ(steps_of(run / "metrics.jsonl"), (std::vector<int64_t>{1, 2, 3, 4}));
}

TEST(Metrics, RowsThatAreMissingAreSaid) {
  const TemporaryDirectory run;
  const CapturedLog log;
  run.write("metrics.jsonl", metrics_row(metrics_of(1)) + "\n");
  { const MetricsLog complete(run.path(), 1); }
  EXPECT_EQ(log.count("found"), 0u);
  { const MetricsLog torn(run.path(), 3); }
  EXPECT_EQ(log.count("metrics.jsonl: found rows of 1 of the 3 steps before"), 1u);
}

TEST(Metrics, CuttingNothingRewritesNothing) {
  const TemporaryDirectory run;
  const auto file =
      run.write("metrics.jsonl", metrics_row(metrics_of(1)) + "\n" + metrics_row(metrics_of(2)) + "\n");
  ReadOnlyDisk disk;
  EXPECT_NO_THROW(cut_metrics(file, 2, disk));
  EXPECT_NO_THROW(cut_metrics(run / "absent.jsonl", 2, disk));
  EXPECT_THROW(cut_metrics(file, 1, disk), EnvironmentError);
  EXPECT_EQ(steps_of(file).size(), 2u);
}

TEST(Metrics, AFullDiskWarnsOnceAndLosesNothingOnceThereIsRoom) {
  const TemporaryDirectory run;
  const CapturedLog captured;
  FullDisk disk(1000);
  MetricsLog log(run.path(), 0, disk);
  for (int64_t step = 1; step <= 20; ++step) log.record(metrics_of(step));
  EXPECT_LT(content_of(run / "metrics.jsonl").size(), 1000u);
  EXPECT_EQ(captured.count("metrics.jsonl: No space left on device"), 1u);
  EXPECT_EQ(captured.count("No space left on device"), 2u);  // and the event file
  disk.free_space(1 << 20);
  log.record(metrics_of(21));
  std::vector<int64_t> all;
  for (int64_t step = 1; step <= 21; ++step) all.push_back(step);
  EXPECT_EQ(steps_of(run / "metrics.jsonl"), all);
}

TEST(Metrics, ASinkThatCannotBeOpenedNeverThrows) {
  const TemporaryDirectory run;
  const CapturedLog captured;
  ReadOnlyDisk disk;
  MetricsLog log(run.path(), 0, disk);
  for (int64_t step = 1; step <= 3; ++step) EXPECT_NO_THROW(log.record(metrics_of(step)));
  EXPECT_EQ(captured.count("Read-only file system"), 2u);
  EXPECT_EQ(content_of(run / "metrics.jsonl"), "");
}

TEST(Metrics, RowsThatCannotBeCutAreNotRepeated) {
  const TemporaryDirectory run;
  run.write("metrics.jsonl", metrics_row(metrics_of(1)) + "\n" + metrics_row(metrics_of(2)) + "\n");
  const CapturedLog captured;
  ReadOnlyDisk disk;
  MetricsLog log(run.path(), 1, disk);
  log.record(metrics_of(2));
  EXPECT_EQ(steps_of(run / "metrics.jsonl"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(captured.count("cannot cut the rows after step 1"), 1u);
}

TEST(Metrics, ARunFolderThatVanishesEndsNothing) {
  const TemporaryDirectory base;
  const CapturedLog captured;
  std::filesystem::create_directory(base / "run");
  MetricsLog log(base / "run", 0);
  std::filesystem::remove_all(base / "run");
  EXPECT_NO_THROW(log.record(metrics_of(1)));
  MetricsLog late(base / "gone/deeper", 0);
  EXPECT_NO_THROW(late.record(metrics_of(1)));
  EXPECT_GE(captured.count("No such file or directory"), 1u);
}

}  // namespace
}  // namespace satune::metrics_test
