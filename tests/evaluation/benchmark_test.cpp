#include "evaluation/benchmark.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <thread>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/utf8.h"
#include "evaluation/benchmark_files.h"
#include "evaluation/classification.h"
#include "evaluation/generated_answer.h"
#include "evaluation/item_store.h"
#include "evaluation/log_likelihood.h"
#include "evaluation/task_file.h"
#include "tests/evaluation/fixtures.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using testing::HasSubstr;

/// The message of the BadInput that `call` throws.
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const BadInput& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

class Benchmarks : public testing::Test {
 protected:
  TaskOptions options() const {
    TaskOptions options;
    options.max_positions = 256;
    options.stop_ids = {2};
    return options;
  }

  const TemporaryDirectory directory_;
  const ByteTokenizer tokenizer_;
};

TEST_F(Benchmarks, HellaswagTextsAreCleaned) {
  const auto file = directory_.write(
      "val.jsonl",
      R"({"activity_label":"Tea","ctx_a":"[header] How to [title] Boil","ctx_b":"\u00e9mile IS","endings":["a [step] b","c  d","[x","]y ["],"label":"2"})"
      "\n");
  const BenchmarkDocument document = read_hellaswag(file).front();
  EXPECT_EQ(document.text, "Tea: How to. Boil \xC3\x89mile is");
  EXPECT_EQ(document.choices, (std::vector<std::string>{"a b", "c d", "[x", "]y ["}));
  EXPECT_EQ(document.gold, 2);
}

TEST_F(Benchmarks, GlueLabelsAreNamesOrNumbers) {
  const auto official =
      directory_.write("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta \"b\tc\tnot_entailment\n");
  const auto hub =
      directory_.write("hub.jsonl", R"({"sentence1":"a \"b","sentence2":"c","label":1,"idx":0})");
  for (const auto& file : {official, hub}) {
    const BenchmarkDocument document = read_glue("rte", file).front();
    EXPECT_EQ(document.text, "a \"b\nQuestion: c True or False?\nAnswer:");
    EXPECT_EQ(document.answer(), "False");
  }
  const auto unlabelled = directory_.write("test.jsonl", R"({"sentence1":"a","sentence2":"c","label":-1})");
  EXPECT_THAT(message_of([&] { read_glue("rte", unlabelled); }),
              HasSubstr("test.jsonl: line 1: label: found -1, expected 0 to 1"));
}

TEST_F(Benchmarks, QqpRowsThatWereCutOffAreLeftOut) {
  const auto file = directory_.write("QQP/train.tsv",
                                     "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
                                     "0\t1\t2\ta?\tb?\t1\n1\t3\t4\tc?\n2\t5\t6\td?\te?\t0\n");
  const std::vector<BenchmarkDocument> documents = read_glue("qqp", file);
  ASSERT_EQ(documents.size(), 2U);
  EXPECT_EQ(documents[1].where, file.string() + ": line 4");
  EXPECT_THAT(message_of([&] { read_glue("rte", file); }), HasSubstr("line 3: found 4 fields, expected 6"));
}

TEST_F(Benchmarks, OnlyTasksOfGlueAreCalledSo) {
  EXPECT_TRUE(is_benchmark("glue_rte") && is_benchmark("rte") && is_benchmark("hellaswag"));
  EXPECT_FALSE(is_benchmark("glue_hellaswag") || is_benchmark("glue_gsm8k") || is_benchmark("glue_"));
}

TEST_F(Benchmarks, MmluAsItsArchiveUnpacksAndInPart) {
  directory_.write("data/test/anatomy_test.csv", "Q one?,a,b,c,d,C\nQ two?,1,2,3,4,A\n");
  const auto task = make_benchmark("mmlu", directory_.path(), options(), tokenizer_);
  const Json metrics = task->metrics({Json{{"acc", 1}}, Json{{"acc", 0}}});
  EXPECT_EQ(metrics["missing_subjects"].size(), 56U);
  EXPECT_EQ(metrics["missing_subjects"][0], "abstract_algebra");
}

/// A pool of documents that are their own examples: number i says "ROW" and is answered by "#i".
DocumentGroup group_of_rows(const std::vector<uint64_t>& rows) {
  DocumentGroup group;
  for (const uint64_t row : rows)
    group.pool.push_back({fmt::format("{}", row), {}, 0, fmt::format("#{}", group.pool.size()), "row", row});
  group.documents = group.pool;
  group.pool_has_document = true;
  return group;
}

TEST(FewShot, ADocumentThatItsPoolHasMoreThanOnceIsDrawnForAgain) {
  // What lm-eval's ContextSampler draws: r = random.Random(1234), pool = [7, 7, 7, 7, 8, 9, 5], for each doc
  // d = [i for i in r.sample(range(7), 3) if pool[i] != doc][:2], and where that is too short
  // o = [i for i in range(7) if pool[i] != doc]; d = [o[j] for j in r.sample(range(len(o)), 2)].
  const std::vector<std::vector<int64_t>> drawn = {{4, 6}, {6, 4}, {5, 6}, {4, 6}, {6, 0}, {4, 3}, {4, 3}};
  const DocumentGroup group = group_of_rows({7, 7, 7, 7, 8, 9, 5});
  const std::vector<std::string> contexts = few_shot_contexts(group, 2, {});
  ASSERT_EQ(contexts.size(), drawn.size());
  for (size_t i = 0; i < contexts.size(); ++i) {
    std::string expected;
    for (const int64_t index : drawn[i]) expected += fmt::format("{} #{}\n\n", group.pool[index].text, index);
    EXPECT_EQ(contexts[i], expected + group.documents[i].text) << i;
  }
  EXPECT_THAT(message_of([] {
                few_shot_contexts(group_of_rows({7, 7, 7, 8}), 2, 1);
              }),
              HasSubstr("2 with 1 examples that are not the question itself"));
}

TEST(FewShot, RowsAreTheSameWhereAllTheirFieldsAre) {
  const DataRow a{{{"x", "1"}, {"idx", 0}}, ""}, b{{{"idx", 0}, {"x", "1"}}, ""},
      c{{{"x", "1"}, {"idx", 1}}, ""};
  EXPECT_EQ(hash_row(a), hash_row(b));
  EXPECT_NE(hash_row(a), hash_row(c));
}

TEST_F(Benchmarks, MmluSubjectsHaveTheirOwnExamples) {
  directory_.write("test/anatomy_test.csv", "\"Which\nbone, \"\"this\"\"? \",a,b,c,d,C\nOther?,1,2,3,4,A\n");
  directory_.write("dev/anatomy_dev.csv", "First?,p,q,r,s,B\nSecond?,p,q,r,s,D\n");
  const std::vector<DocumentGroup> groups = read_mmlu(directory_.path(), true);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].category, "stem");
  const std::vector<std::string> contexts = few_shot_contexts(groups[0], 1, 1);
  EXPECT_EQ(contexts, (std::vector<std::string>{
                          "The following are multiple choice questions (with answers) about anatomy.\n\n"
                          "First?\nA. p\nB. q\nC. r\nD. s\nAnswer: B\n\n"
                          "Which\nbone, \"this\"?\nA. a\nB. b\nC. c\nD. d\nAnswer:"}));
  EXPECT_THAT(message_of([&] { few_shot_contexts(groups[0], 3, {}); }),
              HasSubstr("--num-fewshot: found 3 with 2"));
}

TEST_F(Benchmarks, PackedAndUnknownFilesSayWhatToDo) {
  directory_.write("hellaswag/hellaswag_val.jsonl.bz2", "x");
  EXPECT_THAT(
      message_of([&] { make_benchmark("hellaswag", directory_ / "hellaswag", options(), tokenizer_); }),
      HasSubstr("expected the unpacked one: bunzip2 -k"));
  EXPECT_THAT(message_of([&] { read_data_rows(directory_.write("a.parquet", "PAR1")); }),
              HasSubstr("to_json"));
  EXPECT_THAT(message_of([&] { read_data_rows(directory_.write("a.tsv", "a\tb\n1\t2\n1\n")); }),
              HasSubstr("a.tsv: line 3: found 1 fields, expected 2"));
  EXPECT_THAT(message_of([&] { read_data_rows(directory_.write("a.csv", "a,b\n1,\"2\n")); }),
              HasSubstr("never closed"));
  EXPECT_THAT(message_of([&] { find_benchmark_data("gsm8k", directory_.path()); }),
              HasSubstr("gsm8k or GSM8K"));
}

TEST_F(Benchmarks, ChoicesAreScoredAndPooled) {
  directory_.write("test/anatomy_test.csv", "Q one?,a,b,c,d,C\nQ two?,1,2,3,4,A\nQ three?,1,2,3,4,D\n");
  directory_.write("test/virology_test.csv", "Q four?,a,b,c,d,C\nQ five?,1,2,3,4,B\n");
  const auto task = make_benchmark("mmlu", directory_.path(), options(), tokenizer_);
  ASSERT_EQ(task->items(), 5);
  std::vector<Json> results;
  for (const int acc : {1, 0, 1, 0, 1}) results.push_back({{"acc", acc}});
  const Json metrics = task->metrics(results);
  EXPECT_DOUBLE_EQ(metrics["acc"].get<double>(), 0.6);
  // lm-eval's pooled_sample_stderr([sqrt(2/9/2), 0.5], [3, 2]).
  const double spread = 2 * (2.0 / 9 / 2) * 3 + 1 * 0.25 * 2;
  EXPECT_NEAR(metrics["acc_stderr"].get<double>(), std::sqrt(spread / 3 / 5), 1e-12);
  EXPECT_EQ(metrics["categories"]["stem"]["n"].get<int>(), 3);
  EXPECT_DOUBLE_EQ(metrics["subjects"]["virology"]["acc"].get<double>(), 0.5);
  Llama model = byte_model();
  for (const Json& result : run_all_items(*task, model)) EXPECT_EQ(result["log_likelihoods"].size(), 4U);
}

TEST(Classification, F1AndMatthewsFollowTheirDefinitions) {
  ConfusionCounts counts(2);
  counts.add(1, 1, 6);
  counts.add(1, 0, 2);
  counts.add(0, 1, 1);
  counts.add(0, 0, 3);
  EXPECT_DOUBLE_EQ(f1_score(counts), 12.0 / 15);
  EXPECT_NEAR(matthews_correlation(counts), (6.0 * 3 - 1 * 2) / std::sqrt(7.0 * 8 * 4 * 5), 1e-12);
  // The jackknife of a mean is the usual standard error.
  const auto accuracy = [](const ConfusionCounts& c) {
    return static_cast<double>(c(0, 0) + c(1, 1)) / static_cast<double>(c.items());
  };
  EXPECT_NEAR(*jackknife_error(counts, accuracy), std::sqrt(0.75 * 0.25 / 11), 1e-12);
  ConfusionCounts constant(2);
  constant.add(1, 1, 4);
  EXPECT_EQ(matthews_correlation(constant), 0);
}

TEST(Answers, StrictAndFlexibleExtraction) {
  const AnswerRules rules = gsm8k_answers();
  const auto right = [&](size_t extraction, std::string_view text) {
    return same_answer(rules, extract_answer(rules.extractions[extraction], text), "3 + 15\n#### 1,018");
  };
  EXPECT_TRUE(right(0, " so\n#### 1018. And\n#### 5"));
  EXPECT_FALSE(right(0, "The answer is 1018"));
  EXPECT_TRUE(right(1, "First 7, then $1,018."));
  EXPECT_FALSE(right(1, "1018 and then 7"));
  EXPECT_EQ(extract_answer(rules.extractions[1], "none"), "[invalid]");
  const AnswerExtraction no_group = {"m", std::make_shared<const Regex>("[0-9]+ balls", "test"), true};
  EXPECT_EQ(extract_answer(no_group, "3 balls, then 4 balls."), "4 balls");
}

TEST_F(Benchmarks, TaskFilesRunLikeBuiltInOnes) {
  directory_.write("q.jsonl", R"({"q":"One?","options":["yes","no"],"a":"no"})"
                              "\n"
                              R"({"q":"Two?","options":["yes","no"],"a":0})");
  const auto file =
      directory_.write("mine.json", R"({"data": "q.jsonl", "prompt": "{{Q}} {q}", "choices": "options",
    "answer": "a", "metrics": ["acc", "mcc"], "examples": "q.jsonl", "num_fewshot": 1, "first_examples": true})");
  Llama model = byte_model();
  const auto task = make_task_from_file(file, options(), tokenizer_);
  const std::vector<Json> results = run_all_items(*task, model);
  const ScoredSequence expected = encode_scored("{Q} One? no\n\n{Q} Two?", " yes", tokenizer_, 256, "test");
  const std::vector<const ScoredSequence*> one = {&expected};
  EXPECT_NEAR(results[1]["log_likelihoods"][0].get<double>(), score_sequences(model, one).log_likelihoods[0],
              1e-4);
  // The examples are the data: no question is shown with its own answer.
  const ScoredSequence other = encode_scored("{Q} Two? yes\n\n{Q} One?", " yes", tokenizer_, 256, "test");
  const std::vector<const ScoredSequence*> first = {&other};
  EXPECT_NEAR(results[0]["log_likelihoods"][0].get<double>(),
              score_sequences(model, first).log_likelihoods[0], 1e-4);
  EXPECT_TRUE(task->metrics(results).contains("mcc_stderr"));
  EXPECT_FALSE(task->metrics(results).contains("acc_norm"));

  const auto answers =
      directory_.write("gen.json", R"json({"data": "q.jsonl", "prompt": "{q}", "target": "{q}",
    "stop": ["\n"], "extract": "(x+)", "max_new_tokens": 5
})json");
  const Json metrics = [&] {
    const auto generated = make_task_from_file(answers, options(), tokenizer_);
    return generated->metrics(run_all_items(*generated, model));
  }();
  EXPECT_EQ(metrics["n"].get<int>(), 2);
  EXPECT_EQ(metrics["exact_match"].get<double>(), 0);
}

TEST_F(Benchmarks, SomeGeneratedAnswersAreRight) {
  Llama model = byte_model();
  const std::vector<std::string> questions = {"One", "Two", "Three", "Four"};
  // The results of all items, and behind them the metrics.
  const auto run = [&](const std::vector<std::string>& targets, const std::string& more) {
    std::string rows;
    for (size_t i = 0; i < questions.size(); ++i)
      rows += Json{{"q", questions[i]}, {"a", targets[i]}}.dump() + "\n";
    directory_.write("q.jsonl", rows);
    const auto file = directory_.write(
        "gen.json",
        R"({"data": "q.jsonl", "prompt": "{q}", "target": "{a}", "max_new_tokens": 6)" + more + "}");
    const auto task = make_task_from_file(file, options(), tokenizer_);
    std::vector<Json> results = run_all_items(*task, model);
    results.push_back(task->metrics(results));
    return results;
  };
  std::vector<std::string> texts;
  for (const Json& result : run(questions, ""))
    if (result.contains("text")) texts.emplace_back(trim_white_space(result["text"].get<std::string>()));
  ASSERT_THAT(texts, testing::Each(testing::Not(testing::IsEmpty())));
  const std::vector<Json> right = run({texts[0], "no", texts[2], "no"}, "");
  for (size_t i = 0; i < questions.size(); ++i)
    EXPECT_EQ(right[i]["exact_match"].get<int>(), i % 2 == 0 ? 1 : 0) << i;
  EXPECT_DOUBLE_EQ(right.back()["exact_match"].get<double>(), 0.5);
  EXPECT_NEAR(right.back()["exact_match_stderr"].get<double>(), std::sqrt(0.25 / 3), 1e-12);
  // What a group takes out of the texts is compared, not the texts: the last character but one of each.
  const auto extract = Regex("(?s)(.).$", "test");
  std::vector<std::string> targets;
  for (const std::string& text : texts) targets.push_back(extract.find_all(text).at(0).at(0));
  targets[1] = targets[3] = "none";
  EXPECT_DOUBLE_EQ(run(targets, R"(, "extract": "(?s)(.).\\s*$")").back()["exact_match"].get<double>(), 0.5);
}

TEST_F(Benchmarks, APatternThatIsNeverDoneEndsNoRun) {
  const Regex pattern("(a|aa)+$", "test");
  const std::string text = std::string(60, 'a') + "b";
  EXPECT_THROW(pattern.find_all(text), MatchLimit);
  EXPECT_EQ(pattern.find_all("baa").size(), 1U);
  directory_.write("q.jsonl", Json{{"q", "One"}, {"a", text}}.dump());
  const auto file = directory_.write("gen.json", R"json({"data": "q.jsonl", "prompt": "{q}", "target": "{a}",
    "ignore": ["(a|aa)+$"], "max_new_tokens": 2})json");
  Llama model = byte_model();
  const auto task = make_task_from_file(file, options(), tokenizer_);
  const Json metrics = task->metrics(run_all_items(*task, model));
  EXPECT_EQ(metrics["exact_match"].get<double>(), 0);
  EXPECT_EQ(metrics["match_limit"].get<int>(), 1);
}

TEST_F(Benchmarks, TaskFilesWithMistakesAreRefused) {
  directory_.write("q.jsonl", R"({"q":"One?","a":0})");
  const auto refused = [&](const std::string& json) {
    const auto file = directory_.write("bad.json", json);
    return message_of([&] { make_task_from_file(file, options(), tokenizer_); });
  };
  EXPECT_THAT(refused(R"({"data":"q.jsonl","promt":"x"})"),
              HasSubstr("promt: found an unknown key, expected prompt"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"x"})"), HasSubstr("neither choices nor target"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{r}","choices":["a","b"],"answer":"a"})"),
              HasSubstr("q.jsonl: line 1: r: found nothing"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{q}","choices":["a","b"],"answer":"a","stop":["x"]})"),
              HasSubstr("stop: found choices beside it"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{q}","target":"t","extract":"("})"),
              HasSubstr("extract: found \"(\""));
  EXPECT_THAT(
      refused(R"({"data":"q.jsonl","prompt":"{q}","choices":["a","b","c"],"answer":"a","metrics":["f1"]})"),
      HasSubstr("expected 2 choices"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{q}","choices":["a","b"],"answer":"a","metrics":[]})"),
              HasSubstr("bad.json: metrics: found an empty array, expected at least one of acc"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{q}","target":"t","metrics":[]})"),
              HasSubstr("bad.json: metrics: found an empty array, expected exact_match"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{q}","target":"t","first_examples":true})"),
              HasSubstr("bad.json: first_examples: found true without examples"));
  EXPECT_THAT(refused(R"({"data":"q.jsonl","prompt":"{q}","target":"t","extract_last":true})"),
              HasSubstr("bad.json: extract_last: found true without extract"));
}

TEST_F(Benchmarks, MistakesInTemplatesAndAnswersNameFileAndKey) {
  directory_.write("q.jsonl", R"({"q":"One?","a":"yes"})");
  const auto refused = [&](const std::string& json) {
    const auto file = directory_.write("bad.json", R"({"data":"q.jsonl",)" + json + "}");
    return message_of([&] { make_task_from_file(file, options(), tokenizer_); });
  };
  EXPECT_THAT(refused(R"("prompt":"Q: {q","target":"t")"),
              HasSubstr(R"(bad.json: prompt: found "{q", expected a } after each {)"));
  EXPECT_THAT(refused(R"("prompt":"Q: {q A: {a}","target":"t")"), HasSubstr("bad.json: prompt: found"));
  EXPECT_THAT(refused(R"("prompt":"{q}","target":"{a")"), HasSubstr("bad.json: target: found"));
  EXPECT_THAT(refused(R"("prompt":"{q}","choices":["{a","b"],"answer":"a")"),
              HasSubstr("bad.json: choices: found"));
  EXPECT_THAT(refused(R"("prompt":"{q}","choices":["no","Yes"],"answer":"a")"),
              HasSubstr(R"(q.jsonl: line 1: a: found "yes", which is none of the choices, expected the)"));
  const std::string answers = R"("prompt":"{q}","target":"{a}","max_new_tokens":5,)";
  EXPECT_THAT(refused(answers + R"("examples":"q.jsonl","num_fewshot":20)"),
              HasSubstr("bad.json: num_fewshot: found 20 with 1 examples"));
}

TEST_F(Benchmarks, TwoRunsDoNotWriteIntoOneFile) {
  const auto file = directory_ / "items.jsonl";
  ItemStore first(file, "model");
  first.append("mmlu", "task", {3, Json{{"acc", 1}}, 12});
  const std::string before = read_text_file(file);
  for (const char* model : {"model", "other"})
    EXPECT_THAT(message_of([&] { ItemStore(file, model); }),
                HasSubstr(file.string() + ": found another satune eval writing into it"));
  EXPECT_EQ(read_text_file(file), before);
  first = ItemStore();
  EXPECT_EQ(ItemStore(file, "model").found("mmlu", "task").size(), 1U);
}

TEST_F(Benchmarks, KeptRowsThatAreNoneAreNamed) {
  const auto file = directory_ / "items.jsonl";
  ItemStore(file, "model").append("mmlu", "task", {3, Json{{"acc", 1}}, 12});
  const std::string whole = read_text_file(file);
  for (const auto& [row, words] : std::vector<std::pair<std::string, std::vector<std::string>>>{
           {"7", {"line 3: found the number 7"}},
           {R"({"run":1,"task":"t","item":0,"tokens":1,"result":{}})",
            {"line 3: run", "the number 1", "a text"}},
           {R"({"run":"r","task":null,"item":0,"tokens":1,"result":{}})", {"line 3: task", "found null"}},
           {R"({"run":"r","task":"t","item":"0","tokens":1,"result":{}})",
            {"line 3: item", "\"0\"", "whole"}},
           {R"({"run":"r","task":"t","item":0,"tokens":1.5,"result":{}})", {"line 3: tokens", "1.5"}},
           {R"({"run":"r","task":"t","item":0,"result":{}})", {"line 3: tokens", "found nothing"}},
           {R"({"run":"r","task":"t","item":0,"tokens":1,"result":[]})", {"line 3: result", "an object"}},
           {R"({"run":"r","ta)", {"items.jsonl:3:15: "}}}) {
    directory_.write("items.jsonl", whole + row + "\n");
    const std::string message = message_of([&] { ItemStore(file, "model"); });
    EXPECT_THAT(message, HasSubstr(file.string()));
    for (const std::string& word : words) EXPECT_THAT(message, HasSubstr(word)) << row;
  }
  directory_.write("items.jsonl", R"({"satune_items":1,"model":5})"
                                  "\n");
  EXPECT_THAT(message_of([&] { ItemStore(file, "model"); }), HasSubstr("line 1: model: found the number 5"));

  // What the task reads of a result.
  directory_.write("q.jsonl", R"({"q":"One?","options":["yes","no"],"a":"no"})");
  const auto task = make_task_from_file(
      directory_.write("mine.json", R"({"data": "q.jsonl", "prompt": "{q}", "choices": "options",
    "answer": "a", "metrics": ["acc", "mcc"]})"),
      options(), tokenizer_);
  const auto found = [&](int64_t item, const Json& result) {
    std::filesystem::remove(file);
    ItemStore(file, "model").append("mine", task->fingerprint(), {item, result, 1});
    return ItemStore(file, "model").found("mine", *task).size();
  };
  const Json good = {{"log_likelihoods", {-1.0, -2.0}}, {"gold", 1}, {"acc", 0}, {"acc_norm", 0}};
  EXPECT_EQ(found(0, good), 1U);
  EXPECT_THAT(message_of([&] { found(1, good); }), HasSubstr("line 2: item: found 1, expected at least 0"));
  Json bad = good;
  bad["acc"] = "1";
  EXPECT_THAT(message_of([&] { found(0, bad); }), HasSubstr("line 2: result.acc: found the string \"1\""));
  bad["acc"] = nullptr;
  EXPECT_THAT(message_of([&] { found(0, bad); }), HasSubstr("result.acc: found null, expected a number"));
  bad = good;
  bad["log_likelihoods"] = {-1.0, -2.0, -3.0};
  EXPECT_THAT(message_of([&] { found(0, bad); }),
              HasSubstr("result.log_likelihoods: found an array, expected 2"));
}

TEST_F(Benchmarks, AHeaderThatWasCutOffHoldsNothing) {
  const auto file = directory_ / "items.jsonl";
  const std::string cut = R"({"satune_items":1,"model":"mod)";
  for (const size_t length : {size_t{5}, cut.size()}) {
    directory_.write("items.jsonl", cut.substr(0, length));
    ItemStore(file, "model").append("mmlu", "task", {3, Json{{"acc", 1}}, 12});
    EXPECT_EQ(ItemStore(file, "model").found("mmlu", "task").size(), 1U);
    EXPECT_EQ(entries_of(directory_.path()), (std::vector<std::string>{"items.jsonl"}));
  }
  directory_.write("notes", "none of ours");
  EXPECT_THAT(message_of([&] { ItemStore(directory_ / "notes", "model"); }),
              HasSubstr("notes: line 1: found no header of kept results"));
  EXPECT_EQ(content_of(directory_ / "notes"), "none of ours");
}

TEST_F(Benchmarks, AFileThatItsRankPutsAsideMeanwhileHoldsNothing) {
  const auto ours = directory_ / "ours.jsonl", theirs = directory_ / "theirs.jsonl";
  std::atomic<bool> done = false;
  std::thread rank([&] {
    while (!done) {
      directory_.write("theirs.jsonl", R"({"satune_items":1,"model":"another model"})"
                                       "\n");
      std::filesystem::rename(theirs, directory_ / "theirs.jsonl.old");
    }
  });
  for (int i = 0; i < 2000; ++i) EXPECT_NO_THROW(ItemStore(ours, "model", {theirs}));
  done = true;
  rank.join();
}

TEST_F(Benchmarks, KeptResultsAreTakenUp) {
  const auto file = directory_ / "items.jsonl";
  {
    ItemStore store(file, "model");
    store.append("mmlu", "task", {3, {{"acc", 1}}, 12});
    store.append("mmlu", "task", {1, {{"acc", 0}}, 5});
  }
  const std::string whole = read_text_file(file);
  directory_.write("items.jsonl", whole + R"({"run":"mmlu","ta)");  // a line that was cut off
  {
    ItemStore store(file, "model");
    EXPECT_EQ(store.found("mmlu", "task").size(), 2U);
    EXPECT_EQ(store.found("mmlu", "task").at(3).result["acc"].get<int>(), 1);
    EXPECT_TRUE(store.found("mmlu", "changed").empty());
    EXPECT_TRUE(store.found("mmlu @ 2-3 before", "task").empty());
    store.append("mmlu", "task", {2, {{"acc", 1}}, 5});
  }
  EXPECT_EQ(ItemStore(file, "model").found("mmlu", "task").size(), 3U);
  EXPECT_TRUE(ItemStore(file, "another model").found("mmlu", "task").empty());
  EXPECT_EQ(ItemStore(file.string() + ".old", "model").found("mmlu", "task").size(), 3U) << "nothing is lost";
  EXPECT_TRUE(ItemStore(file, "model").found("mmlu", "task").empty()) << "the file began afresh";
  EXPECT_THROW(ItemStore(directory_.write("other.jsonl", "{\"a\": 1}\n"), "model"), BadInput);

  // What other ranks have left, of a task that is not run now, is taken over before their files go.
  const auto ours = directory_ / "ours.jsonl";
  const auto theirs = directory_ / "theirs.jsonl";
  ItemStore(theirs, "model").append("gsm8k", "other task", {7, Json{{"acc", 1}}, 5});
  {
    ItemStore store(ours, "model", {theirs});
    EXPECT_EQ(store.found("gsm8k", "other task").size(), 1U);
    EXPECT_FALSE(store.holds("gsm8k", "other task", 7));
    store.hold_found();
    EXPECT_TRUE(store.holds("gsm8k", "other task", 7));
    store.hold_found();
  }
  std::filesystem::remove(theirs);
  EXPECT_EQ(ItemStore(ours, "model").found("gsm8k", "other task").at(7).tokens, 5);
}

}  // namespace
}  // namespace satune
