#include "data/dataset.h"

#include <gmock/gmock.h>

#include <numeric>
#include <set>

#include "data/batches.h"
#include "data/files/error.h"
#include "tests/data/data_fixtures.h"

namespace satune {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

class DatasetTest : public DataTest {
 protected:
  std::shared_ptr<const TokenCache> cache(std::string_view text,
                                          const std::string& name = "data.jsonl") const {
    return TokenCache::open_or_build(write(name, text), tokenizer_, bare_template());
  }
  static DatasetPolicy policy(int64_t max_length, Overlength overlength = Overlength::kDrop,
                              bool keep_empty = false) {
    return {.max_length = max_length, .overlength = overlength, .keep_empty_output = keep_empty};
  }

  FakeTokenizer tokenizer_;
};

TEST_F(DatasetTest, CountsWhatIsKept) {
  const Dataset data(cache(line(2, 3) + line(1, 0) + line(4, 1)), policy(100));
  EXPECT_EQ(data.size(), 2);
  const DatasetSummary& summary = data.summary();
  EXPECT_EQ(summary.records, 3);
  EXPECT_EQ(summary.kept, 2);
  EXPECT_EQ(summary.dropped_empty, 1);
  EXPECT_EQ(summary.dropped_overlength, 0);
  EXPECT_EQ(summary.truncated, 0);
  EXPECT_EQ(summary.tokens, 7 + 7);
  EXPECT_EQ(summary.target_tokens, 4 + 2);
  EXPECT_EQ(summary.longest, 7);
  EXPECT_EQ(data.sample(1).record_number, 3);
}

TEST_F(DatasetTest, EmptyOutputIsKeptForEvaluation) {
  const Dataset data(cache(line(2, 0)), policy(100, Overlength::kDrop, true));
  ASSERT_EQ(data.size(), 1);
  EXPECT_EQ(data.sample(0).target_count(), 1);  // the end token
  EXPECT_EQ(data.sample(0).tokens.back(), 2);
}

TEST_F(DatasetTest, MaxLengthExactlyHitIsKeptWhole) {
  for (const Overlength overlength : {Overlength::kDrop, Overlength::kTruncate, Overlength::kError}) {
    const Dataset data(cache(line(3, 5)), policy(10, overlength));
    ASSERT_EQ(data.size(), 1);
    EXPECT_EQ(data.sample(0).tokens.size(), 10u);
    EXPECT_EQ(data.sample(0).tokens.back(), 2);
    EXPECT_EQ(data.summary().truncated, 0);
  }
}

TEST_F(DatasetTest, OverlengthDrop) {
  const Dataset data(cache(line(3, 6) + line(3, 5)), policy(10));
  EXPECT_EQ(data.size(), 1);
  EXPECT_EQ(data.summary().dropped_overlength, 1);
  EXPECT_EQ(data.sample(0).record_number, 2);
}

TEST_F(DatasetTest, OverlengthErrorNamesRecordAndLength) {
  const auto tokens = cache(line(3, 5) + line(3, 6));
  EXPECT_THAT(message_of<BadInput>([&] { Dataset(tokens, policy(10, Overlength::kError)); }),
              AllOf(HasSubstr("data.jsonl record 2"), HasSubstr("11 tokens"), HasSubstr("at most 10")));
}

TEST_F(DatasetTest, OverlengthTruncateDropsWhatHasNoTargetLeft) {  // pain: all-masked sample
  // BOS + 9 prompt tokens fill max_length 10; with 8 prompt tokens one response token is left.
  const Dataset data(cache(line(9, 4) + line(8, 4) + line(20, 4)), policy(10, Overlength::kTruncate));
  ASSERT_EQ(data.size(), 1);
  EXPECT_EQ(data.sample(0).record_number, 2);
  EXPECT_EQ(data.sample(0).tokens.size(), 10u);
  EXPECT_EQ(data.sample(0).target_count(), 1);
  EXPECT_EQ(data.summary().truncated, 1);
  EXPECT_EQ(data.summary().dropped_overlength, 2);
}

TEST_F(DatasetTest, NoSampleIsEverAllMasked) {
  std::string lines;
  for (int prompt = 0; prompt < 14; ++prompt) {
    for (int response = 0; response < 14; ++response) lines += line(prompt, response);
  }
  const auto tokens = cache(lines);
  for (int64_t max_length = 2; max_length < 20; ++max_length) {
    const Dataset data(tokens, policy(max_length, Overlength::kTruncate));
    for (int64_t i = 0; i < data.size(); ++i) {
      const SampleView sample = data.sample(i);
      ASSERT_LE(static_cast<int64_t>(sample.tokens.size()), max_length);
      ASSERT_GT(make_batch(std::span(&sample, 1)).target_count, 0);
      ASSERT_EQ(make_batch(std::span(&sample, 1)).target_count, sample.target_count());
    }
    const DatasetSummary& summary = data.summary();
    EXPECT_EQ(summary.kept + summary.dropped_empty + summary.dropped_overlength, summary.records);
  }
}

TEST_F(DatasetTest, NothingLeftIsAnErrorThatSaysWhy) {
  const auto tokens = cache(line(1, 0) + line(30, 4));
  EXPECT_THAT(message_of<BadInput>([&] { Dataset(tokens, policy(10)); }),
              AllOf(HasSubstr("data.jsonl"), HasSubstr("2 records"), HasSubstr("1 without output"),
                    HasSubstr("1 longer")));
  EXPECT_THAT(message_of<BadInput>([&] { Dataset(tokens, policy(1)); }), HasSubstr("max_length"));
  EXPECT_THAT(message_of<BadInput>([&] { Dataset(tokens, policy(-5)); }), HasSubstr("max_length"));
}

TEST_F(DatasetTest, OverlengthNames) {
  EXPECT_EQ(parse_overlength("drop"), Overlength::kDrop);
  EXPECT_EQ(parse_overlength("truncate"), Overlength::kTruncate);
  EXPECT_EQ(parse_overlength("error"), Overlength::kError);
  EXPECT_THAT(message_of<BadInput>([] { parse_overlength("cut"); }),
              AllOf(HasSubstr("overlength"), HasSubstr("\"cut\"")));
}

TEST_F(DatasetTest, EveryTokenOfPlainTextIsATargetOnce) {
  for (int size = 1; size < 24; ++size) {
    std::string text;
    for (int i = 0; i < size; ++i) text += static_cast<char>('A' + i);
    const auto tokens = cache(text, "text.txt");
    const Dataset data(tokens, policy(5));
    Ids targets;
    for (int64_t i = 0; i < data.size(); ++i) {
      const SampleView piece = data.sample(i);
      EXPECT_LE(piece.tokens.size(), 5u);
      EXPECT_GE(piece.tokens.size(), 2u);
      for (const int32_t target : make_batch(std::span(&piece, 1)).targets) {
        if (target != kIgnoreTarget) targets.push_back(target);
      }
    }
    const auto all = tokens->tokens(0);
    EXPECT_EQ(targets, Ids(all.begin() + 1, all.end())) << size;  // all but BOS
    EXPECT_EQ(data.summary().target_tokens, static_cast<int64_t>(targets.size()));
    EXPECT_EQ(data.summary().dropped_overlength, 0);
  }
}

TEST_F(DatasetTest, FingerprintFollowsTokensAndTargets) {
  const auto tokens = cache(line(2, 3) + line(3, 2) + line(9, 3));
  const std::string base = Dataset(tokens, policy(100)).fingerprint();
  EXPECT_EQ(Dataset(tokens, policy(50)).fingerprint(), base);  // the same samples
  EXPECT_NE(Dataset(tokens, policy(9)).fingerprint(), base);   // one dropped
  EXPECT_NE(Dataset(tokens, policy(12, Overlength::kTruncate)).fingerprint(), base);
  EXPECT_NE(Dataset(tokens, {0, 1}, policy(100)).fingerprint(), base);
  EXPECT_EQ(Dataset(cache(line(2, 3) + "\n" + line(3, 2) + line(9, 3)), policy(100)).fingerprint(), base);
  EXPECT_NE(Dataset(cache(line(3, 2) + line(2, 3) + line(9, 3)), policy(100)).fingerprint(), base);
}

TEST(RecordSplit, FractionsAndCounts) {
  EXPECT_EQ(split_records(10, 0.0, 1).eval.size(), 0u);
  EXPECT_EQ(split_records(10, 0.0, 1).train.size(), 10u);
  EXPECT_EQ(split_records(10, 0.25, 1).eval.size(), 3u);  // rounded up, as Hugging Face does
  EXPECT_EQ(split_records(9229, 0.01, 1).eval.size(), 93u);
  EXPECT_EQ(split_records(10, 1, 1).eval.size(), 1u);
  EXPECT_EQ(split_records(10, 9, 1).eval.size(), 9u);
}

TEST(RecordSplit, IsAPartitionInFileOrder) {
  const RecordSplit split = split_records(1000, 0.1, 42);
  EXPECT_TRUE(std::is_sorted(split.train.begin(), split.train.end()));
  EXPECT_TRUE(std::is_sorted(split.eval.begin(), split.eval.end()));
  std::set<int64_t> all(split.train.begin(), split.train.end());
  all.insert(split.eval.begin(), split.eval.end());
  EXPECT_EQ(all.size(), 1000u);
  EXPECT_EQ(*all.begin(), 0);
  EXPECT_EQ(*all.rbegin(), 999);
  EXPECT_EQ(split.eval, split_records(1000, 0.1, 42).eval);
  EXPECT_NE(split.eval, split_records(1000, 0.1, 43).eval);
}

TEST(RecordSplit, MistakesNameValSize) {
  for (const double wrong : {-0.1, 1.5, 10.0, 11.0, 1e18, std::nan(""), HUGE_VAL}) {
    EXPECT_THAT(message_of<BadInput>([&] { split_records(10, wrong, 1); }), HasSubstr("val_size")) << wrong;
  }
  EXPECT_THAT(message_of<BadInput>([&] { split_records(1, 1.0, 1); }), HasSubstr("eval_file"));
}

TEST(RecordSplit, AShareAlwaysLeavesARecordToTrainOn) {
  EXPECT_EQ(split_records(1, 0.01, 1).train.size(), 1u);
  EXPECT_EQ(split_records(2, 0.9, 1).train.size(), 1u);
  EXPECT_EQ(split_records(2, 0.9, 1).eval.size(), 1u);
}

TEST_F(DatasetTest, ATextFileTrainsWithTheDefaultValSize) {
  DataOptions options;
  options.train_file = write("book.txt", "once upon a time");
  options.val_size = 0.01;
  const TrainingData data = load_training_data(options, tokenizer_, bare_template());
  EXPECT_EQ(data.train.size(), 1);
  EXPECT_FALSE(data.eval);
}

TEST_F(DatasetTest, ASplitWithoutASampleIsCalledByItsName) {
  std::string lines;
  for (int i = 0; i < 10; ++i) lines += line(20, 4);
  DataOptions options;
  options.train_file = write("train.jsonl", lines + line(1, 1));
  options.val_size = 0.1;
  options.policy = policy(10);
  std::set<std::string> parts;
  for (options.seed = 0; options.seed < 40 && parts.size() < 2; ++options.seed) {
    const std::string message =
        message_of<BadInput>([&] { load_training_data(options, tokenizer_, bare_template()); });
    for (const char* part : {"in the training split", "in the eval split (val_size)"})
      if (message.find(part) != std::string::npos) parts.insert(part);
  }
  EXPECT_EQ(parts.size(), 2u);
}

TEST_F(DatasetTest, TrainingDataSplitsOrReadsAFile) {
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += line(1 + i, i % 5);
  DataOptions options{.train_file = write("train.jsonl", lines),
                      .eval_file = {},
                      .val_size = 0.5,
                      .seed = 3,
                      .policy = policy(100),
                      .cache = {}};
  const TrainingData split = load_training_data(options, tokenizer_, bare_template());
  ASSERT_TRUE(split.eval.has_value());
  EXPECT_EQ(split.train.summary().records, 10);
  EXPECT_EQ(split.eval->summary().records, 10);
  EXPECT_EQ(split.eval->size(), 10);  // empty outputs stay in evaluation
  EXPECT_EQ(split.train.size(), 10 - split.train.summary().dropped_empty);
  std::set<int64_t> seen;
  for (int64_t i = 0; i < split.train.size(); ++i) seen.insert(split.train.sample(i).record_number);
  for (int64_t i = 0; i < split.eval->size(); ++i)
    EXPECT_TRUE(seen.insert(split.eval->sample(i).record_number).second);

  options.eval_file = write("eval.jsonl", line(2, 0) + line(2, 2));
  EXPECT_THAT(message_of<BadInput>([&] { load_training_data(options, tokenizer_, bare_template()); }),
              HasSubstr("val_size"));
  options.val_size = 0;
  const TrainingData from_file = load_training_data(options, tokenizer_, bare_template());
  EXPECT_EQ(from_file.train.summary().records, 20);
  EXPECT_EQ(from_file.eval->size(), 2);
  options.eval_file = "";
  EXPECT_FALSE(load_training_data(options, tokenizer_, bare_template()).eval.has_value());
}

// The held-out records do not move when settings change that only select or cut samples.
TEST_F(DatasetTest, TheSplitDoesNotDependOnThePolicy) {
  std::string lines;
  for (int i = 0; i < 40; ++i) lines += line(1 + i, 1 + i % 5);
  DataOptions options{.train_file = write("train.jsonl", lines),
                      .eval_file = {},
                      .val_size = 8,
                      .seed = 3,
                      .policy = policy(100),
                      .cache = {}};
  const auto records = [&] {
    const TrainingData data = load_training_data(options, tokenizer_, bare_template());
    std::set<int64_t> numbers;
    for (int64_t i = 0; i < data.eval->size(); ++i) numbers.insert(data.eval->sample(i).record_number);
    return numbers;
  };
  const std::set<int64_t> all = records();
  ASSERT_EQ(all.size(), 8u);
  options.policy.max_length = 25;
  const std::set<int64_t> some = records();
  EXPECT_TRUE(std::includes(all.begin(), all.end(), some.begin(), some.end()));
}

}  // namespace
}  // namespace satune
