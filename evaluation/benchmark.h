// The public benchmarks, as lm-eval 0.4.13 defines them (its tasks/*.yaml): documents out of the official
// files, their prompts and choices, few-shot examples, metrics.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/task.h"

namespace satune {

/// One question, with everything that a model is shown of it.
struct BenchmarkDocument {
  std::string text;                  ///< the prompt, before the answer
  std::vector<std::string> choices;  ///< without the space before them; empty where an answer is generated
  int64_t gold = 0;                  ///< index of the right choice
  std::string target;                ///< the right answer where it is generated
  std::string where;                 ///< for errors
  uint64_t row = 0;                  ///< of hash_row(): equal rows of a file are the same document

  const std::string& answer() const { return choices.empty() ? target : choices[gold]; }
};

/// Documents that draw their examples from one pool. MMLU has one for each subject, the others have one.
struct DocumentGroup {
  std::string name;         ///< of the subject, "" where there is one group
  std::string category;     ///< of the subject
  std::string description;  ///< text before the examples
  std::vector<BenchmarkDocument> documents;
  std::vector<BenchmarkDocument> pool;  ///< empty unless there are examples
  bool first_of_pool = false;           ///< the first ones; else drawn by Python's random.Random(1234)
  /// A document can be among its own examples and is left out then (lm-eval draws one more).
  bool pool_has_document = false;
  std::string shots_from = "--num-fewshot";  ///< what says how many, for errors
};

/// Which metrics a benchmark of choices reports.
struct ChoiceMetrics {
  bool acc = true, acc_norm = false, f1 = false, mcc = false;
  std::vector<std::string> missing_subjects = {};  ///< that there are no questions of
};

/// The contexts of a group's documents (the first `limit` of them): description, examples and text. Examples
/// are text, a space, the answer and an empty line. Throws BadInput where the pool has too few.
std::vector<std::string> few_shot_contexts(const DocumentGroup& group, int64_t shots,
                                           std::optional<int64_t> limit);

/// Multiple choice by log-likelihood. Metrics: acc, acc_norm (each with _stderr), f1, mcc (with a jackknife
/// _stderr); with named groups also `categories` and `subjects` (and `missing_subjects`), and standard errors
/// pooled over subjects as lm-eval does; n. Results: {"log_likelihoods", "gold", "acc", "acc_norm"}, of named
/// groups also "subject" and "category".
std::unique_ptr<Task> make_choice_task(std::string_view name, std::vector<DocumentGroup> groups,
                                       ChoiceMetrics metrics, int64_t default_shots,
                                       const TaskOptions& options, const Tokenizer& tokenizer);

/// Names of the benchmarks.
const std::vector<std::string>& benchmark_names();

/// Whether `name` is one, under lm-eval's name (sst2) or ours (glue_sst2).
bool is_benchmark(std::string_view name);

/// Reads the benchmark's files. `data` is its file of questions or the folder that holds it under its
/// official name or that of the hub's split; examples are looked for beside it. Throws BadInput.
std::unique_ptr<Task> make_benchmark(std::string_view name, const std::filesystem::path& data,
                                     const TaskOptions& options, const Tokenizer& tokenizer);

/// Where a benchmark lies below --data-dir. Throws BadInput that lists where it was looked for.
std::filesystem::path find_benchmark_data(std::string_view name, const std::filesystem::path& data_dir);

}  // namespace satune
