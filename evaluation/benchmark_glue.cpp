#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "data/utf8.h"
#include "evaluation/benchmark_files.h"

namespace satune {
namespace {

/// A field under the hub's name and that of GLUE's own files.
struct Alias {
  const char *name, *official;
};

struct GlueTask {
  const char* name;
  const char* prompt;  ///< {fields} under the hub's names
  std::vector<std::string> choices;
  std::vector<std::string> labels;  ///< of GLUE's files, by the hub's number; empty = numbers there too
  std::vector<Alias> aliases;
};

// Prompts, choices: lm-eval 0.4.13, tasks/glue. Labels by number: the hub's dataset nyu-mll/glue.
const GlueTask kTasks[] = {
    {"cola", "{sentence}\nQuestion: Does this sentence make sense?\nAnswer:", {"no", "yes"}, {}, {}},
    {"mnli",
     "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:",
     {"True", "Neither", "False"},
     {"entailment", "neutral", "contradiction"},
     {{"premise", "sentence1"}, {"hypothesis", "sentence2"}, {"label", "gold_label"}}},
    {"mrpc",
     "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same "
     "thing?\nAnswer:",
     {"no", "yes"},
     {},
     {{"sentence1", "#1 String"}, {"sentence2", "#2 String"}, {"label", "Quality"}}},
    {"qnli",
     "{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:",
     {"yes", "no"},
     {"entailment", "not_entailment"},
     {}},
    {"qqp",
     "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same "
     "thing?\nAnswer:",
     {"no", "yes"},
     {},
     {{"label", "is_duplicate"}}},
    {"rte",
     "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:",
     {"True", "False"},
     {"entailment", "not_entailment"},
     {}},
    {"sst2",
     "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
     {"negative", "positive"},
     {},
     {{"sentence", "text"}}},
    {"wnli", "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:", {"False", "True"}, {}, {}},
};

const GlueTask& find_task(std::string_view name) {
  if (name == "mnli_mismatch") name = "mnli";
  return *std::find_if(std::begin(kTasks), std::end(kTasks),
                       [&](const GlueTask& t) { return t.name == name; });
}

int64_t label_of(const GlueTask& task, const DataRow& row) {
  const auto found = row.fields.find("label");
  if (found != row.fields.end() && found->is_string()) {
    const auto label = std::find(task.labels.begin(), task.labels.end(), found->get<std::string>());
    if (label != task.labels.end()) return label - task.labels.begin();
  }
  return index_field(row, "label", task.choices.size());
}

/// MNLI's hypotheses get the full stop that some lack.
void close_sentence(DataRow& row, std::string_view key) {
  std::string text(trim_white_space(string_field(row, key)));
  if (!text.ends_with('.')) text += '.';
  row.fields[key] = std::move(text);
}

}  // namespace

std::vector<BenchmarkDocument> read_glue(std::string_view name, const std::filesystem::path& file) {
  const GlueTask& task = find_task(name);
  std::vector<std::string> columns;
  if (name == "cola" && file.extension() == ".tsv") columns = {"source", "label", "star", "sentence"};
  // QQP's official train.tsv has rows that were cut off; the hub leaves them out, too.
  int64_t cut_off = 0;
  std::vector<DataRow> rows = read_data_rows(file, columns, name == "qqp" ? &cut_off : nullptr);
  if (cut_off > 0)
    spdlog::warn("{}: left out {} with fewer fields than the header", file.string(), counted(cut_off, "row"));
  std::vector<BenchmarkDocument> documents;
  for (DataRow& row : rows) {
    // The hub numbers the rows: those that say the same are not the same document.
    if (!row.fields.contains("idx")) row.fields["idx"] = documents.size();
    for (const auto& [key, official] : task.aliases)
      if (row.fields.contains(official) && !row.fields.contains(key)) row.fields[key] = row.fields[official];
    if (task.name == std::string_view("mnli")) close_sentence(row, "hypothesis");
    BenchmarkDocument document;
    document.text = fill_template(task.prompt, row);
    document.choices = task.choices;
    document.gold = label_of(task, row);
    document.where = row.where;
    document.row = hash_row(row);
    documents.push_back(std::move(document));
  }
  return documents;
}

}  // namespace satune
