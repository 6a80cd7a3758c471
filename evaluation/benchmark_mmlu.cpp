#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/utf8.h"
#include "evaluation/benchmark_files.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

struct Subject {
  const char *name, *category;
};

// lm-eval 0.4.13, tasks/mmlu/_generate_configs.py.
constexpr Subject kSubjects[] = {
    {"abstract_algebra", "stem"},
    {"anatomy", "stem"},
    {"astronomy", "stem"},
    {"business_ethics", "other"},
    {"clinical_knowledge", "other"},
    {"college_biology", "stem"},
    {"college_chemistry", "stem"},
    {"college_computer_science", "stem"},
    {"college_mathematics", "stem"},
    {"college_medicine", "other"},
    {"college_physics", "stem"},
    {"computer_security", "stem"},
    {"conceptual_physics", "stem"},
    {"econometrics", "social_sciences"},
    {"electrical_engineering", "stem"},
    {"elementary_mathematics", "stem"},
    {"formal_logic", "humanities"},
    {"global_facts", "other"},
    {"high_school_biology", "stem"},
    {"high_school_chemistry", "stem"},
    {"high_school_computer_science", "stem"},
    {"high_school_european_history", "humanities"},
    {"high_school_geography", "social_sciences"},
    {"high_school_government_and_politics", "social_sciences"},
    {"high_school_macroeconomics", "social_sciences"},
    {"high_school_mathematics", "stem"},
    {"high_school_microeconomics", "social_sciences"},
    {"high_school_physics", "stem"},
    {"high_school_psychology", "social_sciences"},
    {"high_school_statistics", "stem"},
    {"high_school_us_history", "humanities"},
    {"high_school_world_history", "humanities"},
    {"human_aging", "other"},
    {"human_sexuality", "social_sciences"},
    {"international_law", "humanities"},
    {"jurisprudence", "humanities"},
    {"logical_fallacies", "humanities"},
    {"machine_learning", "stem"},
    {"management", "other"},
    {"marketing", "other"},
    {"medical_genetics", "other"},
    {"miscellaneous", "other"},
    {"moral_disputes", "humanities"},
    {"moral_scenarios", "humanities"},
    {"nutrition", "other"},
    {"philosophy", "humanities"},
    {"prehistory", "humanities"},
    {"professional_accounting", "other"},
    {"professional_law", "humanities"},
    {"professional_medicine", "other"},
    {"professional_psychology", "social_sciences"},
    {"public_relations", "social_sciences"},
    {"security_studies", "social_sciences"},
    {"sociology", "social_sciences"},
    {"us_foreign_policy", "social_sciences"},
    {"virology", "other"},
    {"world_religions", "humanities"},
};

BenchmarkDocument make_document(const std::string& question, const std::vector<std::string>& options,
                                int64_t gold, const std::string& where) {
  BenchmarkDocument document;
  document.text = fmt::format("{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:", trim_white_space(question),
                              options[0], options[1], options[2], options[3]);
  document.choices = {"A", "B", "C", "D"};
  document.gold = gold;
  document.where = where;
  return document;
}

int64_t letter_index(const DataRow& row) {
  const std::string letter = string_field(row, "answer");
  if (letter.size() != 1 || letter[0] < 'A' || letter[0] > 'D')
    throw bad_input(row.where + ": answer", fmt::format("\"{}\"", letter), "A, B, C or D");
  return letter[0] - 'A';
}

std::vector<BenchmarkDocument> read_csv(const fs::path& file) {
  std::vector<BenchmarkDocument> documents;
  for (const DataRow& row : read_data_rows(file, {"question", "A", "B", "C", "D", "answer"})) {
    std::vector<std::string> options;
    for (const char* letter : {"A", "B", "C", "D"}) options.push_back(string_field(row, letter));
    documents.push_back(make_document(string_field(row, "question"), options, letter_index(row), row.where));
  }
  return documents;
}

/// The hub's rows of one subject.
std::vector<BenchmarkDocument> rows_of(const std::vector<DataRow>& rows, std::string_view subject) {
  std::vector<BenchmarkDocument> documents;
  for (const DataRow& row : rows) {
    if (string_field(row, "subject") != subject) continue;
    documents.push_back(make_document(string_field(row, "question"), strings_field(row, "choices", 4),
                                      index_field(row, "answer", 4), row.where));
  }
  return documents;
}

DocumentGroup make_group(const Subject& subject) {
  std::string words = subject.name;
  std::replace(words.begin(), words.end(), '_', ' ');
  DocumentGroup group;
  group.name = subject.name;
  group.category = subject.category;
  group.description =
      fmt::format("The following are multiple choice questions (with answers) about {}.\n\n", words);
  group.first_of_pool = true;
  return group;
}

/// Names of files of questions whose subject is none of MMLU's.
std::vector<std::string> unknown_subject_files(const fs::path& folder) {
  constexpr std::string_view kEnd = "_test.csv";
  std::vector<std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string file = entry.path().filename().string();
    if (file.starts_with('.') || !file.ends_with(kEnd)) continue;
    const std::string name = file.substr(0, file.size() - kEnd.size());
    if (std::none_of(std::begin(kSubjects), std::end(kSubjects),
                     [&](const Subject& subject) { return name == subject.name; }))
      files.push_back(file);
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<DocumentGroup> read_folder(const fs::path& folder, bool with_examples) {
  std::vector<DocumentGroup> groups;
  for (const Subject& subject : kSubjects) {
    const fs::path test = folder / "test" / fmt::format("{}_test.csv", subject.name);
    if (!file_exists(test)) continue;
    DocumentGroup group = make_group(subject);
    group.documents = read_csv(test);
    if (with_examples) group.pool = read_csv(folder / "dev" / fmt::format("{}_dev.csv", subject.name));
    groups.push_back(std::move(group));
  }
  if (groups.empty()) return groups;  // which is an error of its own
  if (const std::vector<std::string> files = unknown_subject_files(folder / "test"); !files.empty())
    spdlog::warn("mmlu: left out, for their subjects are none of MMLU's: {} in {}", fmt::join(files, ", "),
                 (folder / "test").string());
  return groups;
}

}  // namespace

std::vector<std::string> missing_mmlu_subjects(const std::vector<DocumentGroup>& groups) {
  std::vector<std::string> missing;
  for (const Subject& subject : kSubjects)
    if (std::none_of(groups.begin(), groups.end(),
                     [&](const DocumentGroup& group) { return group.name == subject.name; }))
      missing.emplace_back(subject.name);
  return missing;
}

std::vector<DocumentGroup> read_mmlu(const fs::path& data, bool with_examples) {
  std::vector<DocumentGroup> groups;
  if (fs::is_directory(data / "test")) {
    groups = read_folder(data, with_examples);
  } else if (fs::is_directory(data / "data" / "test")) {  // as the official archive unpacks
    groups = read_folder(data / "data", with_examples);
  } else {
    const fs::path folder = fs::is_directory(data) ? data : data.parent_path();
    const fs::path file = fs::is_directory(data) ? find_data_file(data, {"test"}) : data;
    const fs::path dev = with_examples ? find_data_file(folder, {"dev"}) : fs::path();
    if (file.empty() || (with_examples && dev.empty()))
      throw bad_input(data.string(), file.empty() ? "no test file" : "no dev file for the examples",
                      "a folder with test/*_test.csv and dev/*_dev.csv, or test.jsonl and dev.jsonl");
    const std::vector<DataRow> rows = read_data_rows(file),
                               examples = with_examples ? read_data_rows(dev) : std::vector<DataRow>();
    for (const Subject& subject : kSubjects) {
      DocumentGroup group = make_group(subject);
      group.documents = rows_of(rows, subject.name);
      group.pool = rows_of(examples, subject.name);
      if (!group.documents.empty()) groups.push_back(std::move(group));
    }
  }
  if (groups.empty())
    throw bad_input(data.string(), "no questions of a subject of MMLU",
                    "test/abstract_algebra_test.csv or another");
  return groups;
}

}  // namespace satune
