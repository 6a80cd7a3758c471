#include "evaluation/benchmark.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "evaluation/benchmark_files.h"
#include "evaluation/generated_answer.h"
#include "evaluation/wikitext.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

struct Benchmark {
  std::string name;                   ///< lm-eval's
  std::vector<std::string> folders;   ///< below --data-dir
  std::vector<std::string> stems;     ///< of the file of questions
  std::vector<std::string> examples;  ///< of the file that examples are drawn from
  ChoiceMetrics metrics;
  int64_t shots = 0;
};

Benchmark glue(const std::string& name, const std::string& folder, ChoiceMetrics metrics,
               std::vector<std::string> stems = {"dev", "validation"}) {
  const std::string base = name == "mnli_mismatch" ? "mnli" : name;
  return {name,
          {"glue/" + folder, "GLUE/" + folder, "glue/" + base, folder, base},
          std::move(stems),
          {"train"},
          metrics,
          0};
}

const std::vector<Benchmark>& benchmarks() {
  static const std::vector<Benchmark> all = {
      {"hellaswag",
       {"hellaswag", "HellaSwag"},
       {"hellaswag_val", "validation", "val"},
       {"hellaswag_train", "train"},
       {.acc_norm = true},
       0},
      {"mmlu", {"mmlu", "MMLU"}, {}, {}, {}, 0},
      {"gsm8k", {"gsm8k", "GSM8K"}, {"test"}, {"train"}, {}, 5},
      {"wikitext", {"wikitext", "wikitext-2-raw", "wikitext-2-raw-v1", "wikitext2"}, {}, {}, {}, 0},
      glue("cola", "CoLA", {.acc = false, .mcc = true}),
      glue("mnli", "MNLI", {}, {"dev_matched", "validation_matched"}),
      glue("mnli_mismatch", "MNLI", {}, {"dev_mismatched", "validation_mismatched"}),
      glue("mrpc", "MRPC", {.f1 = true}),
      glue("qnli", "QNLI", {}),
      glue("qqp", "QQP", {.f1 = true}),
      glue("rte", "RTE", {}),
      glue("sst2", "SST-2", {}),
      glue("wnli", "WNLI", {}),
  };
  return all;
}

bool is_glue(const Benchmark& benchmark) {
  return benchmark.folders.front().starts_with("glue/");
}

const Benchmark* find(std::string_view name) {
  const auto found = std::find_if(benchmarks().begin(), benchmarks().end(), [&](const Benchmark& b) {
    return b.name == name || (is_glue(b) && name == "glue_" + b.name);
  });
  return found == benchmarks().end() ? nullptr : &*found;
}

std::vector<BenchmarkDocument> read_documents(const Benchmark& benchmark, const fs::path& file) {
  if (benchmark.name == "hellaswag") return read_hellaswag(file);
  if (benchmark.name == "gsm8k") return read_gsm8k(file);
  return read_glue(benchmark.name, file);
}

/// What says how many examples there are, for errors.
std::string shots_from(std::string_view name, const TaskOptions& options) {
  return options.num_fewshot ? "--num-fewshot" : fmt::format("the default --num-fewshot of {}", name);
}

DocumentGroup read_group(const Benchmark& benchmark, const fs::path& data, const TaskOptions& options) {
  const bool is_folder = fs::is_directory(data);
  const fs::path file = is_folder ? find_data_file(data, benchmark.stems) : data,
                 folder = is_folder ? data : data.parent_path();
  if (file.empty())
    throw bad_input(data.string(), "no file of " + benchmark.name,
                    fmt::format("{} as .jsonl, .json, .tsv or .csv", fmt::join(benchmark.stems, " or ")));
  DocumentGroup group;
  group.documents = read_documents(benchmark, file);
  group.pool_has_document = benchmark.name != "gsm8k";
  group.shots_from = shots_from(benchmark.name, options);
  if (options.num_fewshot.value_or(benchmark.shots) == 0) return group;
  const fs::path examples = find_data_file(folder, benchmark.examples);
  if (examples.empty())
    throw bad_input(folder.string(), "no examples for " + group.shots_from,
                    fmt::format("{} as .jsonl, .json, .tsv or .csv (or --num-fewshot 0)",
                                fmt::join(benchmark.examples, " or ")));
  group.pool = read_documents(benchmark, examples);
  return group;
}

}  // namespace

const std::vector<std::string>& benchmark_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Benchmark& benchmark : benchmarks())
      all.push_back((is_glue(benchmark) ? "glue_" : "") + benchmark.name);
    return all;
  }();
  return names;
}

bool is_benchmark(std::string_view name) {
  return find(name) != nullptr;
}

std::unique_ptr<Task> make_benchmark(std::string_view name, const fs::path& data, const TaskOptions& options,
                                     const Tokenizer& tokenizer) {
  const Benchmark& benchmark = *find(name);
  if (benchmark.name == "wikitext") return make_wikitext(data, options, tokenizer);
  std::vector<DocumentGroup> groups;
  ChoiceMetrics metrics = benchmark.metrics;
  if (benchmark.name == "mmlu") {
    groups = read_mmlu(data, options.num_fewshot.value_or(benchmark.shots) > 0);
    metrics.missing_subjects = missing_mmlu_subjects(groups);
    if (const size_t missing = metrics.missing_subjects.size(); missing > 0)
      spdlog::warn("mmlu: no questions of {} of {} subjects in {}: {}", missing, missing + groups.size(),
                   data.string(), fmt::join(metrics.missing_subjects, ", "));
  } else {
    groups.push_back(read_group(benchmark, data, options));
  }
  if (benchmark.name == "gsm8k")
    return make_answer_task(name, std::move(groups.front()), gsm8k_answers(), benchmark.shots, options,
                            tokenizer);
  return make_choice_task(name, std::move(groups), std::move(metrics), benchmark.shots, options, tokenizer);
}

fs::path find_benchmark_data(std::string_view name, const fs::path& data_dir) {
  const Benchmark& benchmark = *find(name);
  for (const std::string& folder : benchmark.folders)
    if (fs::is_directory(data_dir / folder)) return data_dir / folder;
  throw bad_input(fmt::format("--data-dir {}", data_dir.string()), fmt::format("no data of {}", name),
                  fmt::format("a folder {}", fmt::join(benchmark.folders, " or ")));
}

}  // namespace satune
