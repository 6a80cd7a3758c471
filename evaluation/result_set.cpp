#include "evaluation/result_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <system_error>

#include "data/files/error.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kExpected = "a report of satune eval --output or generate --json, or a run folder";

/// Lines of a JSONL file that end; a last one that was cut off is left out.
template <typename F>
void for_each_line(const fs::path& path, F&& f) {
  std::ifstream file(path);
  if (!file) throw bad_input(path.string(), "no such file", "the one beside its report");
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (file.eof()) break;
    if (!line.empty()) f(number, parse_json(line, fmt::format("{} line {}", path.string(), number)));
  }
}

/// By run name ("TASK", or "TASK @ LAYERS ANCHOR" under a plan) and fingerprint.
using ItemFile = std::map<std::string, std::map<std::string, ItemResults>>;

ItemFile read_items(const fs::path& path) {
  ItemFile items;
  for_each_line(path, [&](int64_t number, const Json& line) {
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

/// Whether the means of the items are the reported ones.
bool make_up(const ItemResults& items, const Json& metrics) {
  for (const auto& [metric, value] : metrics.items()) {
    if (!value.is_number() || metric == "n" || metric == "tokens") continue;
    double sum = 0, weight = 0;
    size_t count = 0;
    for (const auto& [item, result] : items) {
      const std::optional<ItemValue> found = item_value(result, metric);
      if (!found) break;
      sum += found->value;
      weight += found->weight;
      ++count;
    }
    const double reported = value.get<double>();
    if (count == items.size() && std::abs(sum / weight - reported) > 1e-9 * std::max(1.0, std::abs(reported)))
      return false;
  }
  return true;
}

ResultSet read_report(const Json& report, const std::string& source, const std::string& name,
                      const ItemFile& items) {
  ResultSet set;
  set.name = name;
  if (report.is_object() && !report.contains("tasks") && report.contains("prompt") &&
      report["prompt"].is_string()) {
    set.prompt = report["prompt"].get<std::string>();
    for (const auto& [key, value] : report.items())
      if (value.is_number()) set.measurements[key] = value;
    return set;
  }
  if (!report.is_object() || !report.contains("tasks") || !report["tasks"].is_object())
    throw bad_input(source, "no object \"tasks\"", kExpected);
  set.sharing = report.value("sharing", "");
  const std::string plan =
      set.sharing.empty() ? "" : fmt::format(" @ {} {}", set.sharing, report.value("anchor", "before"));
  for (const auto& [task, metrics] : report["tasks"].items()) {
    if (!metrics.is_object())
      throw bad_input(source + ": tasks." + task, describe_json(&metrics), "an object");
    TaskResults results{metrics, {}};
    const auto found = items.find(task + plan);
    if (found != items.end())
      for (const auto& [fingerprint, each] : found->second)
        if (!metrics.contains("n") || metrics["n"] == each.size()) results.items[fingerprint] = each;
    if (results.items.size() > 1)
      std::erase_if(results.items, [&](const auto& each) { return !make_up(each.second, metrics); });
    set.tasks[task] = std::move(results);
  }
  for (const auto& [key, value] : report.items())
    if (value.is_number()) set.measurements[key] = value;
  return set;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// The newest snapshot whose state can be read; snapshots are named in the order of their steps.
std::map<std::string, std::string> texts_of(const fs::path& run) {
  std::error_code error;
  std::vector<fs::path> states;
  for (const auto& entry : fs::directory_iterator(run / "snapshots", error))
    if (fs::exists(entry.path() / "MANIFEST.json", error)) states.push_back(entry.path() / "state.json");
  if (states.empty()) return {};
  const Json state = read_json_file(*std::max_element(states.begin(), states.end()));
  std::map<std::string, std::string> texts;
  if (!state.is_object() || !state.contains("texts") || !state["texts"].is_object()) return texts;
  for (const auto& [use, fingerprint] : state["texts"].items())
    if (fingerprint.is_string()) texts[use] = fingerprint;
  return texts;
}

ResultSet read_run(const fs::path& run) {
  const fs::path path = run / "metrics.jsonl";
  ResultSet set;
  set.name = run.string();
  Json last = Json::object();
  std::map<std::string, std::vector<double>> series;
  for_each_line(path, [&](int64_t number, const Json& row) {
    if (!row.is_object())
      throw bad_input(fmt::format("{} line {}", path.string(), number), describe_json(&row), "an object");
    // What is not finite stands there as null.
    for (const char* key : {"step", "loss", "eval_loss"})
      if (row.contains(key) && (row[key].is_number() || row[key].is_null())) last[key] = row[key];
    for (const char* key : {"tokens_per_s", "step_seconds", "mfu", "peak_memory_bytes", "device_power_w"})
      if (row.contains(key) && row[key].is_number()) series[key].push_back(row[key]);
  });
  if (last.empty()) throw bad_input(path.string(), "no row with a loss", "the metrics of a run");
  set.tasks["training"] = {last, {}};
  for (const auto& [key, values] : series)
    set.measurements[key] =
        key == "peak_memory_bytes" ? *std::max_element(values.begin(), values.end()) : median(values);
  set.texts = texts_of(run);
  return set;
}

}  // namespace

std::optional<ItemValue> item_value(const Json& result, const std::string& metric) {
  const auto it = result.find(metric);
  if (it == result.end() || !(it->is_number() || it->is_boolean())) return std::nullopt;
  ItemValue found{it->is_boolean() ? static_cast<double>(it->get<bool>()) : it->get<double>(), 1};
  if (metric == "loss" && result.contains("tokens") && result["tokens"].is_number())
    found.weight = result["tokens"];
  return found;
}

std::vector<ResultSet> read_results(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    if (!fs::exists(path / "metrics.jsonl", error))
      throw bad_input(path.string(), "a folder without metrics.jsonl", kExpected);
    return {read_run(path)};
  }
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
    const std::string sharing = each.is_object() ? each.value("sharing", "") : "";
    sets.push_back(read_report(each, path.string() + ": sweep",
                               fmt::format("{} {}", path.string(), sharing.empty() ? "dense" : sharing),
                               items));
  }
  return sets;
}

}  // namespace satune
