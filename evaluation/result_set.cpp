#include "evaluation/result_set.h"

#include <fmt/format.h>

#include <fstream>
#include <limits>
#include <system_error>

#include "data/files/error.h"
#include "evaluation/run_results.h"
#include "evaluation/sums.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kExpected =
    "a report of satune eval --output, generate --json or generate --prompts, or a run folder";

/// By run name ("TASK", or "TASK @ LAYERS ANCHOR" under a plan) and fingerprint.
using ItemFile = std::map<std::string, std::map<std::string, ItemResults>>;

ItemFile read_items(const fs::path& path) {
  ItemFile items;
  for_each_json_line(path, "the one beside its report", [&](int64_t number, const Json& line) {
    if (number == 1) return;  // which model it was
    const std::string where = fmt::format("{} line {}", path.string(), number);
    if (!line.is_object()) throw bad_input(where, describe_json(&line), "an item's result");
    const auto is = [&](const char* key, auto check) { return line.contains(key) && check(line[key]); };
    const auto text = [](const Json& value) { return value.is_string(); };
    if (!is("run", text) || !is("task", text) ||
        !is("item", [](const Json& v) { return v.is_number_integer(); }) ||
        !is("result", [](const Json& v) { return v.is_object(); }))
      throw bad_input(where, line.dump(), "run, task, item and result");
    items[line["run"]][line["task"]][line["item"].get<int64_t>()] = line["result"];
  });
  return items;
}

/// The text under a key; "" where it is missing or null.
std::string text_of(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return "";
  if (!it->is_string())
    throw bad_input(fmt::format("{}: {}", where, key), describe_json(&*it), "text or null");
  return it->get<std::string>();
}

TaskFingerprints read_fingerprints(const Json& report, const std::string& task, const std::string& source) {
  if (!report.contains("fingerprints")) return {};
  const std::string where = source + ": fingerprints";
  const Json& all = report["fingerprints"];
  if (!all.is_object()) throw bad_input(where, describe_json(&all), "an object");
  if (!all.contains(task)) return {};
  const Json& own = all[task];
  if (!own.is_object()) throw bad_input(where + "." + task, describe_json(&own), "an object");
  const std::string place = where + "." + task;
  return {text_of(own, "items", place), text_of(own, "data", place), text_of(own, "template", place),
          text_of(own, "tokenizer", place), true};
}

/// A file also keeps what earlier runs found on other data: they count for nothing. A report without
/// fingerprints has that of its items, where there is no doubt.
void take_items(const std::map<std::string, ItemResults>& found, TaskResults& task) {
  std::vector<const std::pair<const std::string, ItemResults>*> complete;
  const char* count = task.metrics.contains("windows") ? "windows" : "n";
  for (const auto& each : found) {
    const bool right = task.fingerprints.items.empty() || task.fingerprints.items == each.first;
    if (right && (!task.metrics.contains(count) || task.metrics[count] == each.second.size()))
      complete.push_back(&each);
  }
  if (complete.size() != 1) return;
  task.fingerprints.items = complete.front()->first;
  task.items = complete.front()->second;
}

void read_numbers(const Json& report, Json& measurements) {
  for (const auto& [key, value] : report.items())
    if (value.is_number()) measurements[key] = value;
}

/// The numbers of an answer of generate, with the time of a token after the first.
Json answer_numbers(const Json& answer) {
  Json numbers = Json::object();
  read_numbers(answer, numbers);
  const auto number = [&](const char* key) { return numbers.value(key, 0.0); };
  const size_t tokens =
      answer.contains("tokens") && answer["tokens"].is_array() ? answer["tokens"].size() : 0;
  const double seconds = number("seconds"), first = number("time_to_first_token_s");
  if (tokens > 1 && first > 0 && seconds > first)
    numbers["time_per_token_s"] = (seconds - first) / static_cast<double>(tokens - 1);
  return numbers;
}

ResultSet read_answer(const Json& report, const std::string& name) {
  ResultSet set;
  set.name = name;
  set.prompts[1] = report["prompt"].get<std::string>();
  set.measurements = answer_numbers(report);
  return set;
}

/// Whether this is JSONL of generate --prompts, whatever its name: a line begins with the prompt's number.
bool is_answer_file(const fs::path& path) {
  constexpr std::string_view kBegin = "{\"number\"";
  std::string begin(kBegin.size(), '\0');
  std::ifstream file(path, std::ios::binary);
  return file.read(begin.data(), static_cast<std::streamsize>(begin.size())) && begin == kBegin;
}

ResultSet read_answers(const fs::path& path) {
  constexpr std::string_view kAnswer = "an answer of satune generate --prompts";
  ResultSet set;
  set.name = path.string();
  std::map<std::string, RatioSums> sums;
  std::vector<std::string> keys;
  for_each_json_line(path, kExpected, [&](int64_t line, const Json& answer) {
    const std::string where = fmt::format("{} line {}", path.string(), line);
    if (!answer.is_object()) throw bad_input(where, describe_json(&answer), kAnswer);
    const auto number = answer.find("number"), prompt = answer.find("prompt");
    if (number == answer.end() || !number->is_number_integer())
      throw bad_input(where, number == answer.end() ? "no number" : "number " + number->dump(), kAnswer);
    if (prompt == answer.end() || !prompt->is_string())
      throw bad_input(where, prompt == answer.end() ? "no prompt" : "prompt " + prompt->dump(), kAnswer);
    if (!set.prompts.emplace(number->get<int64_t>(), prompt->get<std::string>()).second)
      throw bad_input(where, fmt::format("number {} a second time", number->dump()), "each prompt once");
    Json numbers = answer_numbers(answer);
    numbers.erase("number");
    for (const auto& [key, value] : numbers.items()) {
      if (!sums.contains(key)) keys.push_back(key);
      sums[key].add(value.get<double>(), 1);
    }
    set.answers[number->get<int64_t>()] = std::move(numbers);
  });
  if (set.prompts.empty()) throw bad_input(path.string(), "no complete line", kAnswer);
  for (const std::string& key : keys) {
    set.measurements[key] = sums[key].ratio();
    const std::optional<double> error = sums[key].standard_error();
    if (error && *error > 0) set.measurement_errors[key] = *error;
  }
  return set;
}

ResultSet read_report(const Json& report, const std::string& source, const std::string& name,
                      const ItemFile& items) {
  if (report.is_object() && !report.contains("tasks") && report.contains("prompt") &&
      report["prompt"].is_string())
    return read_answer(report, name);
  if (!report.is_object() || !report.contains("tasks") || !report["tasks"].is_object())
    throw bad_input(source, "no object \"tasks\"", kExpected);
  ResultSet set;
  set.name = name;
  set.sharing = text_of(report, "sharing", source);
  set.precision = text_of(report, "precision", source);
  const std::string anchor = text_of(report, "anchor", source);
  const std::string plan =
      set.sharing.empty() ? "" : fmt::format(" @ {} {}", set.sharing, anchor.empty() ? "before" : anchor);
  for (const auto& [task, metrics] : report["tasks"].items()) {
    if (!metrics.is_object())
      throw bad_input(source + ": tasks." + task, describe_json(&metrics), "an object");
    TaskResults results{metrics, read_fingerprints(report, task, source), {}};
    const auto found = items.find(task + plan);
    if (found != items.end()) take_items(found->second, results);
    set.tasks[task] = std::move(results);
  }
  read_numbers(report, set.measurements);
  return set;
}

/// What counts items describes the data and is no result.
bool is_count(std::string_view metric) {
  return metric == "n" || metric == "tokens" || metric == "windows" || metric == "over_length" ||
         metric == "step";
}

void add_metrics(const Json& metrics, const std::string& prefix, std::vector<Metric>& found) {
  for (const auto& [name, value] : metrics.items()) {
    if (value.is_object()) add_metrics(value, prefix + name + ".", found);
    if (!(value.is_number() || value.is_null()) || name.ends_with("_stderr") || is_count(name)) continue;
    Metric metric{prefix + name,
                  value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN()};
    const auto error = metrics.find(name + "_stderr");
    if (error != metrics.end() && error->is_number()) metric.standard_error = error->get<double>();
    found.push_back(std::move(metric));
  }
}

}  // namespace

std::vector<Metric> result_metrics(const Json& metrics) {
  std::vector<Metric> found;
  add_metrics(metrics, "", found);
  return found;
}

std::vector<ResultSet> read_results(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    if (!fs::exists(path / "metrics.jsonl", error))
      throw bad_input(path.string(), "a folder without metrics.jsonl", kExpected);
    return {read_run_results(path)};
  }
  if (is_answer_file(path)) return {read_answers(path)};
  const Json report = read_json_file(path);
  if (!report.is_object()) throw bad_input(path.string(), describe_json(&report), kExpected);
  ItemFile items;
  if (report.contains("items") && report["items"].is_string())
    items = read_items(path.parent_path() / report["items"].get<std::string>());
  if (!report.contains("sweep")) return {read_report(report, path.string(), path.string(), items)};
  if (!report["sweep"].is_array() || report["sweep"].empty())
    throw bad_input(path.string() + ": sweep", describe_json(&report["sweep"]), "one report a plan");
  std::vector<ResultSet> sets;
  for (const Json& each : report["sweep"]) {
    const std::string where = path.string() + ": sweep";
    ResultSet set = read_report(each, where, path.string(), items);
    set.name += " " + (set.sharing.empty() ? "dense" : set.sharing);
    sets.push_back(std::move(set));
  }
  return sets;
}

}  // namespace satune
