#include "evaluation/task_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "data/files/error.h"
#include "data/utf8.h"
#include "evaluation/benchmark_files.h"
#include "evaluation/generated_answer.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

const std::vector<std::string> kCommonKeys = {"data",        "prompt",         "description", "examples",
                                              "num_fewshot", "first_examples", "metrics"};
const std::vector<std::string> kChoiceKeys = {"choices", "answer"};
const std::vector<std::string> kAnswerKeys = {"target", "stop",        "extract",       "extract_last",
                                              "ignore", "ignore_case", "max_new_tokens"};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

class TaskFile {
 public:
  explicit TaskFile(const fs::path& path)
      : path_(path), json_(read_json_file(path, {.allow_comments = true})) {
    if (!json_.is_object()) throw bad_input(path.string(), describe_json(&json_), "an object");
    check_keys();
  }

  bool has_choices() const { return json_.contains("choices"); }
  std::string where(const std::string& key) const { return path_.string() + ": " + key; }

  std::optional<std::string> text(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) throw bad_input(where(key), describe_json(value), "a string");
    return value->get<std::string>();
  }
  std::string required_text(const std::string& key) const {
    if (auto value = text(key)) return *value;
    throw bad_input(where(key), "nothing", "a string");
  }
  std::vector<std::string> texts(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) return {};
    auto strings = strings_of(value);
    if (!strings) throw bad_input(where(key), describe_json(value), "an array of strings");
    return *std::move(strings);
  }
  bool flag(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) throw bad_input(where(key), describe_json(value), "true or false");
    return value->get<bool>();
  }
  int64_t number(const std::string& key, int64_t absent, int64_t least) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_number_integer() || value->get<int64_t>() < least)
      throw bad_input(where(key), describe_json(value), fmt::format("a whole number of at least {}", least));
    return value->get<int64_t>();
  }
  fs::path file(const std::string& key) const { return path_.parent_path() / required_text(key); }
  const Json* find(const std::string& key) const {
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }

 private:
  void check_keys() const {
    std::vector<std::string> known = kCommonKeys;
    for (const auto* keys : {&kChoiceKeys, &kAnswerKeys})
      known.insert(known.end(), keys->begin(), keys->end());
    for (const auto& [key, value] : json_.items()) {
      if (contains(known, key)) continue;
      const std::string near = nearest_name(key, known);
      throw bad_input(where(key), "an unknown key",
                      near.empty() ? fmt::format("one of {}", fmt::join(known, ", ")) : near);
    }
    if (has_choices() == json_.contains("target"))
      throw bad_input(path_.string(),
                      has_choices() ? "both choices and target" : "neither choices nor target",
                      "one of the two");
    for (const std::string& key : has_choices() ? kAnswerKeys : kChoiceKeys)
      if (json_.contains(key))
        throw bad_input(where(key), has_choices() ? "choices beside it" : "target beside it",
                        "one kind of task");
  }

  fs::path path_;
  Json json_;
};

std::vector<std::string> choices_of(const TaskFile& file, const DataRow& row) {
  std::vector<std::string> choices;
  if (file.find("choices")->is_array()) {
    for (const std::string& choice : file.texts("choices"))
      choices.push_back(fill_template(choice, row, file.where("choices")));
  } else {
    choices = strings_field(row, file.required_text("choices"));
  }
  if (choices.size() < 2)
    throw bad_input(row.where + ": choices", fmt::format("{}", choices.size()), "at least 2");
  for (const std::string& choice : choices)
    if (choice.empty()) throw bad_input(row.where + ": choices", "an empty one", "text");
  return choices;
}

int64_t gold_of(const TaskFile& file, const DataRow& row, const std::vector<std::string>& choices) {
  const std::string key = file.required_text("answer");
  const auto field = row.fields.find(key);
  if (field != row.fields.end() && field->is_string()) {
    const auto text = field->get<std::string>();
    const auto named = std::find(choices.begin(), choices.end(), text);
    if (named != choices.end()) return named - choices.begin();
    if (text.empty() || text.find_first_not_of("-0123456789") != std::string::npos)
      throw bad_input(fmt::format("{}: {}", row.where, key),
                      fmt::format("{}, which is none of the choices", quote_json(text)),
                      fmt::format("the text of one, or its index from 0 to {}", choices.size() - 1));
  }
  return index_field(row, key, choices.size());
}

std::vector<BenchmarkDocument> read_documents(const TaskFile& file, const fs::path& data) {
  const std::string prompt = file.required_text("prompt");
  std::vector<BenchmarkDocument> documents;
  for (const DataRow& row : read_data_rows(data)) {
    BenchmarkDocument document;
    document.text = fill_template(prompt, row, file.where("prompt"));
    document.where = row.where;
    document.row = hash_row(row);
    if (file.has_choices()) {
      document.choices = choices_of(file, row);
      document.gold = gold_of(file, row, document.choices);
    } else {
      document.target = fill_template(file.required_text("target"), row, file.where("target"));
    }
    documents.push_back(std::move(document));
  }
  return documents;
}

/// Those of the file; the first known one where it has none.
std::vector<std::string> metric_names(const TaskFile& file, const std::vector<std::string>& known) {
  if (file.find("metrics") == nullptr) return {known.front()};
  std::vector<std::string> names = file.texts("metrics");
  const std::string expected = fmt::format("{}", fmt::join(known, ", "));
  if (names.empty())
    throw bad_input(file.where("metrics"), "an empty array",
                    known.size() > 1 ? "at least one of " + expected : expected);
  for (const std::string& name : names)
    if (!contains(known, name)) throw bad_input(file.where("metrics"), quote_json(name), expected);
  return names;
}

ChoiceMetrics choice_metrics(const TaskFile& file, const std::vector<BenchmarkDocument>& documents) {
  const std::vector<std::string> names = metric_names(file, {"acc", "acc_norm", "f1", "mcc"});
  const ChoiceMetrics metrics{contains(names, "acc"), contains(names, "acc_norm"), contains(names, "f1"),
                              contains(names, "mcc")};
  for (const BenchmarkDocument& document : documents)
    if ((metrics.f1 || metrics.mcc) && document.choices.size() != 2)
      throw bad_input(file.where("metrics"),
                      fmt::format("f1 or mcc with {} choices ({})", document.choices.size(), document.where),
                      "2 choices");
  return metrics;
}

std::shared_ptr<const Regex> regex_of(const TaskFile& file, const std::string& key, const std::string& text) {
  return std::make_shared<const Regex>(text, file.where(key));
}

AnswerRules answer_rules(const TaskFile& file) {
  metric_names(file, {"exact_match"});  // refuses another
  AnswerRules rules;
  const auto pattern = file.text("extract");
  if (!pattern && file.flag("extract_last"))
    throw bad_input(file.where("extract_last"), "true without extract", "extract beside it");
  rules.extractions = {
      {"exact_match", pattern ? regex_of(file, "extract", *pattern) : nullptr, file.flag("extract_last")}};
  rules.stop = file.texts("stop");
  for (const std::string& stop : rules.stop)
    if (stop.empty()) throw bad_input(file.where("stop"), "an empty string", "text");
  for (const std::string& text : file.texts("ignore"))
    rules.ignored.push_back(regex_of(file, "ignore", text));
  rules.ignore_case = file.flag("ignore_case");
  rules.max_new_tokens = file.number("max_new_tokens", 256, 1);
  return rules;
}

}  // namespace

std::unique_ptr<Task> make_task_from_file(const fs::path& path, const TaskOptions& options,
                                          const Tokenizer& tokenizer) {
  const TaskFile file(path);
  const int64_t shots = file.number("num_fewshot", 0, 0);
  DocumentGroup group;
  group.description = file.text("description").value_or("");
  group.first_of_pool = file.flag("first_examples");
  if (group.first_of_pool && file.find("examples") == nullptr)
    throw bad_input(file.where("first_examples"), "true without examples", "examples beside it");
  if (!options.num_fewshot) group.shots_from = file.where("num_fewshot");
  group.documents = read_documents(file, file.file("data"));
  if (options.num_fewshot.value_or(shots) > 0) {
    const fs::path examples = file.file("examples");
    group.pool = read_documents(file, examples);
    group.pool_has_document = fs::equivalent(examples, file.file("data"));
  }
  const std::string name = path.stem().string();
  if (!file.has_choices())
    return make_answer_task(name, std::move(group), answer_rules(file), shots, options, tokenizer);
  const ChoiceMetrics metrics = choice_metrics(file, group.documents);
  std::vector<DocumentGroup> groups;
  groups.push_back(std::move(group));
  return make_choice_task(name, std::move(groups), metrics, shots, options, tokenizer);
}

}  // namespace satune
