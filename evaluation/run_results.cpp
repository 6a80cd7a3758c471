#include "evaluation/run_results.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <system_error>

#include "data/files/error.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Those of the newest snapshot, or of data.json where none is left. Snapshots are named in the order of
/// their steps; a run that goes on may take one away while it is read.
std::map<std::string, std::string> texts_of(const fs::path& run) {
  std::error_code error;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(run / "snapshots", error))
    if (fs::exists(entry.path() / "MANIFEST.json", error)) files.push_back(entry.path() / "state.json");
  std::sort(files.begin(), files.end(), std::greater());
  files.push_back(run / "data.json");
  for (const fs::path& file : files) {
    if (!fs::exists(file, error)) continue;
    const Json json = read_json_file(file);
    if (!json.is_object() || !json.contains("texts") || !json["texts"].is_object()) continue;
    std::map<std::string, std::string> texts;
    for (const auto& [use, fingerprint] : json["texts"].items())
      if (fingerprint.is_string()) texts[use] = fingerprint;
    return texts;
  }
  return {};
}

/// Joules and tokens of the steps whose card told its power.
class EnergySums {
 public:
  void add(const Json& row) {
    // Rank 0 knows its own card's power alone.
    alone_ = alone_ && !row.contains("sent_reduced_bytes");
    for (const char* key : {"device_power_w", "step_seconds", "tokens_per_s"})
      if (!row.contains(key) || !row[key].is_number()) return;
    const double seconds = row["step_seconds"];
    joules_ += row["device_power_w"].get<double>() * seconds;
    tokens_ += row["tokens_per_s"].get<double>() * seconds;
  }
  void write(Json& measurements) const {
    if (joules_ <= 0) return;
    measurements["device_energy_joules"] = joules_;
    if (alone_ && tokens_ > 0) measurements["device_energy_joules_per_token"] = joules_ / tokens_;
  }

 private:
  double joules_ = 0, tokens_ = 0;
  bool alone_ = true;
};

}  // namespace

void for_each_json_line(const fs::path& path, std::string_view expected,
                        const std::function<void(int64_t number, const Json& line)>& f) {
  std::ifstream file(path);
  if (!file) throw bad_input(path.string(), "no such file", expected);
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (file.eof()) break;
    if (!line.empty()) f(number, parse_json(line, path.string(), {.line = static_cast<size_t>(number)}));
  }
}

ResultSet read_run_results(const fs::path& run) {
  const fs::path path = run / "metrics.jsonl";
  ResultSet set;
  set.name = run.string();
  Json last = Json::object();
  EnergySums energy;
  std::map<std::string, std::vector<double>> series;
  for_each_json_line(path, "the metrics of a run", [&](int64_t number, const Json& row) {
    if (!row.is_object())
      throw bad_input(fmt::format("{} line {}", path.string(), number), describe_json(&row), "an object");
    // What is not finite stands there as null.
    for (const char* key : {"loss", "eval_loss"}) {
      if (!row.contains(key) || !(row[key].is_number() || row[key].is_null())) continue;
      last[key] = row[key];
      if (row.contains("step") && row["step"].is_number_integer()) set.steps[key] = row["step"];
    }
    for (const char* key : {"tokens_per_s", "step_seconds", "mfu", "peak_memory_bytes", "device_power_w"})
      if (row.contains(key) && row[key].is_number()) series[key].push_back(row[key]);
    energy.add(row);
  });
  if (last.empty()) throw bad_input(path.string(), "no row with a loss", "the metrics of a run");
  set.tasks["training"] = {last, {}, {}};
  for (const auto& [key, values] : series)
    set.measurements[key] =
        key == "peak_memory_bytes" ? *std::max_element(values.begin(), values.end()) : median(values);
  energy.write(set.measurements);
  set.texts = texts_of(run);
  return set;
}

}  // namespace satune
