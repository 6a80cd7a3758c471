#include "data/batches.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/files/error.h"
#include "data/random.h"
#include "tests/data/data_fixtures.h"
#include "tests/realdata.h"

namespace satune {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

class BatchesTest : public DataTest {
 protected:
  /// 200 records of 4 to 40 tokens, all different.
  BatchesTest() {
    RandomStream random(1, "lengths");
    for (int i = 0; i < 200; ++i) {
      const std::string text = fmt::format("{:03}{}", i, std::string(random.below(34), 'p'));
      const size_t cut = 1 + random.below(text.size() - 1);
      lines_ += fmt::format("{{\"instruction\":\"{}\",\"output\":\"{}\"}}\n", text.substr(0, cut),
                            text.substr(cut));
    }
  }

  Dataset dataset(const std::string& lines, int64_t max_length = 64) const {
    const auto cache =
        TokenCache::open_or_build(write("data.jsonl", lines), FakeTokenizer(), bare_template());
    return Dataset(cache,
                   {.max_length = max_length, .overlength = Overlength::kDrop, .keep_empty_output = false});
  }
  BatchSource source(const PlanOptions& options) const { return BatchSource(dataset(lines_), options); }

  static void expect_equal(const Batch& a, const Batch& b) {
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.targets, b.targets);
    EXPECT_EQ(a.positions, b.positions);
    EXPECT_EQ(a.document_starts, b.document_starts);
    EXPECT_EQ(a.target_count, b.target_count);
  }

  std::string lines_;
};

constexpr PlanOptions kPacked{.max_length = 64, .packing = true, .shuffle = true, .seed = 42};
constexpr PlanOptions kSingle{.max_length = 64, .packing = false, .shuffle = true, .seed = 42};

TEST(AppendDocument, TheFirstResponseTokenIsLearnedFromTheLastPromptToken) {  // rival's mask off by one
  Batch batch;
  append_document(batch, Ids{1, 10, 11, 20, 21, 2}, 3);
  EXPECT_EQ(batch.tokens, (Ids{1, 10, 11, 20, 21, 2}));
  EXPECT_EQ(batch.targets, (Ids{-100, -100, 20, 21, 2, -100}));
  EXPECT_EQ(batch.positions, (Ids{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(batch.document_starts, (Ids{0, 6}));
  EXPECT_EQ(batch.target_count, 3);
}

TEST(AppendDocument, PackedDocumentsDoNotKnowEachOther) {  // pain: packing contamination
  Batch packed;
  append_document(packed, Ids{1, 10, 20, 2}, 2);
  append_document(packed, Ids{1, 11, 12, 2}, 3);
  append_document(packed, Ids{7, 8}, 0);
  EXPECT_EQ(packed.document_starts, (Ids{0, 4, 8, 10}));
  EXPECT_EQ(packed.positions, (Ids{0, 1, 2, 3, 0, 1, 2, 3, 0, 1}));
  // EOS never learns the next document's first token.
  EXPECT_EQ(packed.targets, (Ids{-100, 20, 2, -100, -100, -100, 2, -100, 8, -100}));
  EXPECT_EQ(packed.target_count, 4);
}

TEST(AppendDocument, AnAllMaskedDocumentHasNoTargets) {
  Batch batch;
  append_document(batch, Ids{1, 10, 11}, 3);
  EXPECT_EQ(batch.target_count, 0);
  EXPECT_EQ(batch.targets, (Ids{-100, -100, -100}));
}

TEST_F(BatchesTest, EveryEpochHoldsEverySampleOnce) {
  for (const PlanOptions& options : {kPacked, kSingle}) {
    const Dataset data = dataset(lines_);
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      const EpochPlan plan(data, options, epoch);
      std::set<int64_t> seen;
      for (int64_t row = 0; row < plan.rows(); ++row) {
        int64_t tokens = 0;
        for (const int64_t sample : plan.row(row)) {
          EXPECT_TRUE(seen.insert(sample).second);
          tokens += static_cast<int64_t>(data.sample(sample).tokens.size());
        }
        EXPECT_GT(tokens, 0);
        EXPECT_LE(tokens, options.max_length);
        if (!options.packing) {
          EXPECT_EQ(plan.row(row).size(), 1u);
        }
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), data.size());
    }
  }
}

TEST_F(BatchesTest, PackingIsTight) {
  const Dataset data = dataset(lines_);
  const EpochPlan plan(data, kPacked, 0);
  const int64_t fewest = (data.summary().tokens + 63) / 64;
  EXPECT_GE(plan.rows(), fewest);
  EXPECT_LE(plan.rows(), fewest + fewest / 20 + 1);  // at most 5 % more than the bound that no packing beats
}

TEST_F(BatchesTest, BestFitByHand) {
  const std::string lines = line(1, 3) + line(1, 4) + line(0, 1) + line(1, 1) + line(1, 2) + line(2, 1);
  const Dataset data = dataset(lines, 10);
  ASSERT_EQ(data.size(), 6);
  const EpochPlan plan(data, {.max_length = 10, .packing = true, .shuffle = false, .seed = 0}, 0);
  std::vector<std::vector<int64_t>> rows;
  for (int64_t r = 0; r < plan.rows(); ++r) rows.emplace_back(plan.row(r).begin(), plan.row(r).end());
  // Lengths 6, 7, 3, 4, 5, 5 into rows of 10: 6 | 7 | 3 goes to the 7 (room 3 < 4) | 4 goes to the 6 | 5
  // opens a row | 5 joins it
  EXPECT_EQ(rows, (std::vector<std::vector<int64_t>>{{0, 3}, {1, 2}, {4, 5}}));
}

TEST_F(BatchesTest, OrderIsAFunctionOfSeedAndEpoch) {
  const auto order = [&](const PlanOptions& options, int64_t epoch) {
    const EpochPlan plan(dataset(lines_), options, epoch);
    const auto all = plan.rows_between(0, plan.rows());
    return std::vector<int64_t>(all.begin(), all.end());
  };
  for (PlanOptions options : {kPacked, kSingle}) {
    const auto first = order(options, 0);
    EXPECT_EQ(first, order(options, 0));
    EXPECT_NE(first, order(options, 1));
    options.seed = 43;
    EXPECT_NE(first, order(options, 0));
  }
  PlanOptions in_order = kSingle;
  in_order.shuffle = false;
  std::vector<int64_t> ascending(200);
  std::iota(ascending.begin(), ascending.end(), 0);
  EXPECT_EQ(order(in_order, 0), ascending);
  EXPECT_EQ(order(in_order, 7), ascending);
}

TEST_F(BatchesTest, SeekingEqualsReplaying) {  // pain: resume differs, skipping hours of data
  constexpr int64_t kRowsPerStep = 3;
  for (const PlanOptions& options : {kPacked, kSingle}) {
    BatchSource replayed = source(options);
    std::map<std::pair<int64_t, int64_t>, Batch> seen;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      for (int64_t row = 0; row < replayed.rows(epoch); row += kRowsPerStep) {
        seen[{epoch, row}] = replayed.make_batch(epoch, row, kRowsPerStep);
      }
    }
    for (const auto& [position, expected] : seen) {
      if (position.second % 7 != 0) continue;
      BatchSource resumed = source(options);  // a new process
      expect_equal(resumed.make_batch(position.first, position.second, kRowsPerStep), expected);
    }
  }
}

TEST_F(BatchesTest, TheGlobalBatchDoesNotDependOnItsCuts) {  // world size or accumulation changed
  BatchSource batches = source(kPacked);
  const Batch whole = batches.make_batch(1, 4, 8);
  for (const int64_t part : {1, 2, 4}) {
    Ids tokens;
    int64_t targets = 0;
    for (int64_t row = 4; row < 12; row += part) {
      const Batch batch = batches.make_batch(1, row, part);
      tokens.insert(tokens.end(), batch.tokens.begin(), batch.tokens.end());
      targets += batch.target_count;
    }
    EXPECT_EQ(tokens, whole.tokens);
    EXPECT_EQ(targets, whole.target_count);
  }
}

TEST_F(BatchesTest, TheLastBatchIsATrueSmallerOne) {  // pain: uneven last batch
  for (const PlanOptions& options : {kPacked, kSingle}) {
    BatchSource batches = source(options);
    const int64_t rows = batches.rows(0);
    expect_equal(batches.make_batch(0, rows - 2, 100), batches.make_batch(0, rows - 2, 2));
    EXPECT_EQ(batches.target_count(0, rows - 2, 100), batches.make_batch(0, rows - 2, 2).target_count);
    const Batch none = batches.make_batch(0, rows, 4);
    EXPECT_TRUE(none.tokens.empty());
    EXPECT_EQ(none.document_starts, (Ids{0}));
    EXPECT_EQ(none.target_count, 0);
    EXPECT_EQ(batches.target_count(0, rows + 10, 4), 0);
    int64_t targets = 0;
    for (int64_t row = 0; row < rows; row += 7) targets += batches.make_batch(0, row, 7).target_count;
    EXPECT_EQ(targets, batches.dataset().summary().target_tokens);
  }
}

TEST_F(BatchesTest, CountsWithoutBuilding) {
  BatchSource batches = source(kPacked);
  for (int64_t row = 0; row < batches.rows(2); row += 2) {
    const Batch batch = batches.make_batch(2, row, 2);
    EXPECT_EQ(batches.target_count(2, row, 2), batch.target_count);
    EXPECT_EQ(batches.token_count(2, row, 2), static_cast<int64_t>(batch.tokens.size()));
    EXPECT_EQ(std::count_if(batch.targets.begin(), batch.targets.end(),
                            [](int32_t t) { return t != kIgnoreTarget; }),
              batch.target_count);
    EXPECT_EQ(batches.record_numbers(2, row, 2).size(), batch.document_starts.size() - 1);
  }
}

TEST_F(BatchesTest, RecordNumbersNameTheDocuments) {
  BatchSource batches = source(kPacked);
  const Batch batch = batches.make_batch(0, 5, 2);
  const auto numbers = batches.record_numbers(0, 5, 2);
  const auto records = read_alpaca(folder_ / "data.jsonl");
  const FakeTokenizer tokenizer;
  for (size_t d = 0; d < numbers.size(); ++d) {
    const Record& record = records[static_cast<size_t>(numbers[d] - 1)];
    const Ids document(batch.tokens.begin() + batch.document_starts[d],
                       batch.tokens.begin() + batch.document_starts[d + 1]);
    EXPECT_EQ(document, bare_template().encode(record, tokenizer).tokens);
  }
}

TEST_F(BatchesTest, TheLongestSampleFillsARow) {
  std::string lines = lines_;
  lines += line(1, 61);  // 64 tokens
  lines += line(1, 62);  // 65 tokens
  const Dataset data = dataset(lines);
  EXPECT_EQ(data.summary().longest, 64);
  EXPECT_EQ(data.summary().dropped_overlength, 1);
  const EpochPlan plan(data, kPacked, 0);
  for (int64_t row = 0; row < plan.rows(); ++row) {
    if (std::ranges::count(plan.row(row), 200) > 0) {
      EXPECT_EQ(plan.row(row).size(), 1u);
    }
  }
  PlanOptions shorter = kPacked;
  shorter.max_length = 63;
  EXPECT_THAT(message_of<BadInput>([&] { BatchSource(data, shorter); }), HasSubstr("max_length"));
}

TEST_F(BatchesTest, FingerprintFollowsWhatChangesTheOrder) {
  const std::string base = source(kPacked).fingerprint();
  EXPECT_EQ(base, source(kPacked).fingerprint());
  std::vector<PlanOptions> changed(4, kPacked);
  changed[0].seed = 1;
  changed[1].packing = false;
  changed[2].shuffle = false;
  changed[3].max_length = 65;
  for (const PlanOptions& options : changed) EXPECT_NE(source(options).fingerprint(), base);
  PlanOptions longer = kSingle;
  longer.max_length = 65;  // means nothing without packing
  EXPECT_EQ(source(longer).fingerprint(), source(kSingle).fingerprint());
}

TEST_F(BatchesTest, RowCountsOfManyEpochsAreRemembered) {
  BatchSource batches = source(kPacked);
  std::vector<int64_t> rows;
  for (int64_t epoch = 0; epoch < 6; ++epoch) rows.push_back(batches.rows(epoch));
  for (int64_t epoch = 5; epoch >= 0; --epoch) {
    EXPECT_EQ(batches.rows(epoch), rows[static_cast<size_t>(epoch)]);
    EXPECT_EQ(batches.plan(epoch).rows(), rows[static_cast<size_t>(epoch)]);
  }
}

TEST(RealBatches, AlpacaThroughARealTokenizer) {
  SATUNE_REALDATA_OR_SKIP(path, "alpaca_random9k/random_9k.json");
  SATUNE_REALDATA_OR_SKIP(directory, "stories260K_hf");
  const auto tokenizer = load_tokenizer(directory);
  const auto alpaca = PromptTemplate::load("alpaca");
  const TrainingData data =
      load_training_data({.train_file = path,
                          .eval_file = {},
                          .val_size = 0.01,
                          .seed = 42,
                          .policy = {.max_length = 512, .overlength = Overlength::kDrop},
                          .cache = {.columns = {}, .directory = {}, .threads = 2}},
                         *tokenizer, alpaca);
  EXPECT_EQ(data.train.summary().records + data.eval->summary().records, 9229);
  EXPECT_EQ(data.eval->summary().records, 93);
  BatchSource batches(data.train, {.max_length = 2048});
  const int64_t tokens = data.train.summary().tokens;
  EXPECT_GT(static_cast<double>(tokens), 0.97 * 2048 * static_cast<double>(batches.rows(0)));
  // Decoded, a trained document is the template's text and its targets are the response.
  const Batch batch = batches.make_batch(0, 0, 4);
  const auto numbers = batches.record_numbers(0, 0, 4);
  const auto records = read_alpaca(path);
  for (size_t d = 0; d < numbers.size(); ++d) {
    const Record& record = records[static_cast<size_t>(numbers[d] - 1)];
    Ids learned;
    for (int32_t i = batch.document_starts[d]; i < batch.document_starts[d + 1]; ++i) {
      if (batch.targets[static_cast<size_t>(i)] != kIgnoreTarget)
        learned.push_back(batch.targets[static_cast<size_t>(i)]);
    }
    ASSERT_FALSE(learned.empty());
    EXPECT_EQ(learned.back(), *tokenizer->eos_id());
    learned.pop_back();
    EXPECT_EQ(learned, tokenizer->encode(record.output));
  }
}

}  // namespace
}  // namespace satune
