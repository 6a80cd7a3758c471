#include "evaluation/task.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "data/files/error.h"
#include "evaluation/generation.h"
#include "evaluation/sums.h"
#include "tests/evaluation/fixtures.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

constexpr const char* kRecords = R"([
  {"instruction": "Say yes", "output": "yes"},
  {"instruction": "Repeat the word", "input": "caf\u00e9", "output": "caf\u00e9 au lait"},
  {"instruction": "Nothing", "output": ""},
  {"instruction": "Count to nine in words, without leaving any of them out, and then go on to twelve in the same way",
   "output": "one two three four five six seven eight nine ten eleven twelve"},
  {"instruction": "Add", "input": "2 3", "output": "5"}
])";

class Tasks : public testing::Test {
 protected:
  Json run(const Task& task, Llama& model) { return task.metrics(run_all_items(task, model)); }

  /// The definition, one document at a time: sum of -log p(target) from the logits of the whole document.
  double reference_loss(Llama& model, const EncodedSample& sample) {
    const auto N = static_cast<int64_t>(sample.tokens.size());
    DeviceBatch batch;
    batch.tokens_N =
        at::tensor(at::IntArrayRef(std::vector<int64_t>(sample.tokens.begin(), sample.tokens.end())));
    batch.positions_N = at::arange(N, at::kLong);
    batch.document_starts = {0, N};
    const at::Tensor log_p_NV = at::log_softmax(model.logits(batch).to(at::kDouble), -1);
    double loss = 0;
    for (int64_t i = std::max(sample.prompt_length, 1); i < N; ++i)
      loss -= log_p_NV[i - 1][sample.tokens[static_cast<size_t>(i)]].item<double>();
    return loss;
  }

  const TemporaryDirectory directory_;
  const std::filesystem::path records_ = directory_.write("records.json", kRecords);
  const ByteTokenizer tokenizer_;
  const PromptTemplate template_{"short",
                                 {.prompt_with_input = "Q {instruction} | {input}\nA ",
                                  .prompt_without_input = "Q {instruction}\nA ",
                                  .response_header = "",
                                  .response_suffix = "",
                                  .end_token = "",
                                  .special_tokens = {},
                                  .trim = false}};
};

TEST_F(Tasks, ResponseLossIsTheMeanOverTargetTokens) {
  Llama model = byte_model();
  double loss = 0;
  int64_t tokens = 0;
  for (const Record& record : read_alpaca(records_)) {
    const EncodedSample sample = template_.encode(record, tokenizer_);
    loss += reference_loss(model, sample);
    tokens += static_cast<int64_t>(sample.tokens.size()) - sample.prompt_length;
  }
  const auto task = make_task("response_loss", records_, {}, tokenizer_, &template_);
  const Json metrics = run(*task, model);
  EXPECT_NEAR(metrics["loss"].get<double>(), loss / static_cast<double>(tokens), 1e-5);
  EXPECT_EQ(metrics["tokens"].get<int64_t>(), tokens);
  EXPECT_EQ(metrics["n"].get<int64_t>(), 5);
  EXPECT_GT(metrics["loss_stderr"].get<double>(), 0);
}

TEST_F(Tasks, ResponseLossDoesNotDependOnBatchesOrShares) {
  Llama model = byte_model("2-3");
  const auto one = make_task("response_loss", records_, {.batch_size = 1}, tokenizer_, &template_);
  const auto loss = run(*one, model)["loss"].get<double>();
  for (const int64_t batch_size : {2, 5}) {
    const auto task =
        make_task("response_loss", records_, {.batch_size = batch_size}, tokenizer_, &template_);
    EXPECT_NEAR(run(*task, model)["loss"].get<double>(), loss, 1e-5);
  }
  const auto automatic = make_task("response_loss", records_, {}, tokenizer_, &template_);
  for (const int64_t shares : {2, 3, 8}) {
    std::vector<Json> results(5);
    for (int64_t share = 0; share < shares; ++share) {
      std::vector<int64_t> items;
      for (int64_t item = share; item < automatic->items(); item += shares) items.push_back(item);
      automatic->run(model, items, [&](ItemResult result) { results[result.item] = result.result; });
    }
    const Json metrics = automatic->metrics(results);
    EXPECT_NEAR(metrics["loss"].get<double>(), loss, 1e-5);
    EXPECT_EQ(metrics["n"].get<int64_t>(), 5);
  }
}

TEST_F(Tasks, RecordsAreCountedAfterTheLengthFilter) {
  Llama model = byte_model();
  const auto task =
      make_task("response_loss", records_, {.max_length = 60, .max_records = 4}, tokenizer_, &template_);
  const Json metrics = run(*task, model);
  EXPECT_EQ(metrics["n"].get<int64_t>(), 4);
  EXPECT_EQ(metrics["over_length"].get<int64_t>(), 1);
  EXPECT_THROW(make_task("response_loss", records_, {.max_length = 5}, tokenizer_, &template_), BadInput);
}

TEST_F(Tasks, PerplexityCountsEveryTokenOnce) {
  Llama model = byte_model();
  const std::string text = "The quick brown fox jumps over the lazy dog. Caf\xC3\xA9!";
  const auto path = directory_.write("text.txt", text);
  // One window as long as the text: the definition directly.
  EncodedSample whole;
  whole.tokens = encode_raw_prompt(text, tokenizer_);
  const double loss = reference_loss(model, whole) / static_cast<double>(text.size());
  const auto at_once = make_task("perplexity", path, {.max_length = 200}, tokenizer_, &template_);
  const Json metrics = run(*at_once, model);
  EXPECT_NEAR(metrics["loss"].get<double>(), loss, 1e-5);
  EXPECT_NEAR(metrics["perplexity"].get<double>(), std::exp(loss), 1e-3);
  EXPECT_EQ(metrics["tokens"].get<int64_t>(), static_cast<int64_t>(text.size()));
  EXPECT_EQ(metrics["n"].get<int64_t>(), 1);
}

TEST_F(Tasks, PerplexityWindowsFollowTheirDefinition) {
  Llama model = byte_model();
  const std::string text = "Pack my box with five dozen liquor jugs";
  const auto path = directory_.write("text.txt", text);
  const std::vector<int32_t> tokens = encode_raw_prompt(text, tokenizer_);
  // Windows of 16, each new one 8 further: a token sees what its window begins with.
  double loss = 0;
  int64_t end = 0;
  while (end < static_cast<int64_t>(tokens.size()) - 1) {
    const int64_t counted = end;
    end = std::min<int64_t>(end + (end == 0 ? 16 : 8), static_cast<int64_t>(tokens.size()) - 1);
    const int64_t begin = std::max<int64_t>(0, end - 16);
    EncodedSample window;
    window.tokens.assign(tokens.begin() + begin, tokens.begin() + end + 1);
    window.prompt_length = static_cast<int32_t>(counted - begin + 1);
    loss += reference_loss(model, window);
  }
  const auto task = make_task("perplexity", path, {.max_length = 16, .stride = 8}, tokenizer_, &template_);
  const Json metrics = run(*task, model);
  EXPECT_NEAR(metrics["loss"].get<double>(), loss / static_cast<double>(text.size()), 1e-5);
  EXPECT_EQ(metrics["tokens"].get<int64_t>(), static_cast<int64_t>(text.size()));
  // Over windows, as a ratio of sums; that of exp(loss) to the first order.
  RatioSums sums;
  for (const Json& window : run_all_items(*task, model)) sums.add(window["loss"], window["tokens"]);
  EXPECT_NEAR(metrics["loss_stderr"].get<double>(), *sums.standard_error(), 1e-6);
  EXPECT_NEAR(metrics["perplexity_stderr"].get<double>(),
              metrics["perplexity"].get<double>() * *sums.standard_error(), 1e-3);
  EXPECT_THROW(make_task("perplexity", path, {.max_length = 16, .stride = 17}, tokenizer_, &template_),
               BadInput);
}

TEST_F(Tasks, ExactMatchComparesTrimmedText) {
  Llama model = byte_model();
  // What the model says to two instructions; the third expects something else, the fourth other letters.
  Json records = Json::array();
  Decoder decoder(model, 100);
  for (const std::string instruction : {"abc", "xyz", "Hello", "World"}) {
    decoder.clear();
    const auto prompt = template_.encode_prompt({instruction, "", "", 0}, tokenizer_);
    const Generation answer =
        generate(decoder, prompt, {.max_new_tokens = 8, .sampling = {}, .stop_ids = {2}});
    std::string text = tokenizer_.decode(answer.text_tokens(), true);
    if (instruction == "xyz") text = " \n" + text + "\t ";
    if (instruction == "Hello") text += "!";
    if (instruction == "World") text = "something else";
    records.push_back({{"instruction", instruction}, {"output", text}});
  }
  const auto path = directory_.write("match.json", records.dump());
  const auto task =
      make_task("exact_match", path, {.max_new_tokens = 8, .stop_ids = {2}}, tokenizer_, &template_);
  const Json metrics = run(*task, model);
  EXPECT_DOUBLE_EQ(metrics["exact_match"].get<double>(), 0.5);
  EXPECT_NEAR(metrics["exact_match_stderr"].get<double>(), std::sqrt(0.25 / 3), 1e-12);
  EXPECT_EQ(metrics["n"].get<int64_t>(), 4);
}

TEST_F(Tasks, AnAnswerThatOutgrewItsTargetIsNotFinished) {
  Llama model = byte_model();
  const auto path = directory_.write("short.json", R"([{"instruction": "abc", "output": "x"}])");
  const auto task = make_task("exact_match", path, {.max_new_tokens = 200}, tokenizer_, &template_);
  task->run(model, {0}, [](const ItemResult& result) {
    EXPECT_EQ(result.result["exact_match"].get<int>(), 0);
    EXPECT_LT(result.tokens, 60);
  });
}

TEST_F(Tasks, UnknownNamesAreAnsweredWithTheNearest) {
  try {
    make_task("response_los", records_, {}, tokenizer_, &template_);
    FAIL();
  } catch (const BadInput& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean response_loss?"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace satune
