// Data, samples, snapshots and settings.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "data/utf8.h"
#include "evaluation/figures/charts.h"
#include "evaluation/run_report/run_sections.h"

namespace satune {
namespace {

constexpr size_t kShownRecords = 16, kShownEvaluations = 12, kShownBytes = 1500;

std::string text_of(const Json& value) {
  return printable(value.is_string() ? value.get<std::string>()
                                     : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

/// A heading for all, and below it one for each run where there are several.
template <typename F>
void for_each_run(HtmlPage& page, Runs runs, const std::string& title, F&& f) {
  page.heading(title);
  for (const NamedRun& run : runs) {
    if (runs.size() > 1) page.subheading(run.name);
    f(*run.history);
  }
}

const Json* part_of(const Json& data, const char* key) {
  if (!data.is_object() || !data.contains(key) || !data[key].is_object()) return nullptr;
  return &data[key];
}

/// The file's own names, in its order; the histograms are drawn below.
void add_data_table(HtmlPage& page, const Json& data) {
  HtmlTable table{"Counted when the run started.", {"", "train", "eval"}, {}};
  const Json* train = part_of(data, "train");
  const Json* eval = part_of(data, "eval");
  if (train == nullptr) return;
  for (const auto& [key, value] : train->items()) {
    if (value.is_object()) continue;
    table.rows.push_back({printable(key), text_of(value),
                          eval != nullptr && eval->contains(key) ? text_of(eval->at(key)) : kDash});
  }
  for (const auto& [key, value] : data.items())
    if (!value.is_object() && !value.is_null()) table.rows.push_back({printable(key), text_of(value), ""});
  page.table(table);
}

void add_histogram(HtmlPage& page, const Json& part, const char* key, const std::string& title,
                   const std::string& x_axis) {
  const Json* bins = part_of(part, key);
  if (bins == nullptr || !bins->contains("bin_width") || !bins->at("bin_width").is_number() ||
      !bins->contains("counts") || !bins->at("counts").is_array())
    return;
  Histogram histogram{.title = title,
                      .description = "",
                      .x_axis = x_axis,
                      .y_axis = "samples",
                      .bin_width = bins->at("bin_width").get<double>(),
                      .counts = {}};
  for (const Json& count : bins->at("counts"))
    histogram.counts.push_back(count.is_number() ? count.get<double>() : 0);
  const auto most = std::max_element(histogram.counts.begin(), histogram.counts.end());
  if (most == histogram.counts.end() || histogram.bin_width <= 0) return;
  const double low = static_cast<double>(most - histogram.counts.begin()) * histogram.bin_width;
  histogram.description =
      fmt::format("{}: bins of {:g} tokens; the fullest holds {:g} samples of {:g} to {:g}.", title,
                  histogram.bin_width, *most, low, low + histogram.bin_width - 1);
  page.figure(draw(histogram));
}

void add_run_data(HtmlPage& page, const RunHistory& run) {
  if (!run.data.is_object()) {
    page.paragraph("There is no data.json: counts and lengths are not known.");
    return;
  }
  add_data_table(page, run.data);
  for (const auto& [part, name] : {std::pair{"train", "trained on"}, std::pair{"eval", "held out"}})
    if (const Json* counts = part_of(run.data, part)) {
      add_histogram(page, *counts, "lengths", fmt::format("Lengths of the samples {}", name), "tokens");
      add_histogram(page, *counts, "target_lengths", fmt::format("Target tokens of the samples {}", name),
                    "target tokens");
    }
}

/// `text` in at most kShownBytes, cut between characters.
std::string shortened(const std::string& text) {
  const std::string all = printable(text);
  if (all.size() <= kShownBytes) return all;
  std::string begin = all.substr(0, kShownBytes);
  if (const auto cut = find_invalid_utf8(begin)) begin.resize(*cut);
  return begin + fmt::format(" \xE2\x80\xA6 ({} bytes in all)", text.size());
}

/// The first, the last and an even choice between.
std::vector<int64_t> shown_steps(const RunHistory& run) {
  std::set<int64_t> all;
  for (const EvalSample& sample : run.samples) all.insert(sample.step);
  const std::vector<int64_t> steps(all.begin(), all.end());
  if (steps.size() <= kShownEvaluations) return steps;
  std::vector<int64_t> shown;
  for (size_t i = 0; i < kShownEvaluations; ++i)
    shown.push_back(steps[i * (steps.size() - 1) / (kShownEvaluations - 1)]);
  return shown;
}

void add_run_samples(HtmlPage& page, const RunHistory& run) {
  if (run.samples.empty()) {
    page.paragraph(
        "There are none: the setting eval_samples says for how many held-out records answers are written at "
        "each evaluation.");
    return;
  }
  const std::vector<int64_t> steps = shown_steps(run);
  std::vector<int64_t> records;
  for (const EvalSample& sample : run.samples)
    if (std::find(records.begin(), records.end(), sample.record) == records.end())
      records.push_back(sample.record);
  const size_t shown = std::min(records.size(), kShownRecords);
  page.paragraph(fmt::format(
      "Greedy answers to held-out records: {} of {} records, {} evaluations. samples.jsonl has all.", shown,
      records.size(), steps.size()));
  for (const int64_t record : std::span(records).first(shown)) {
    bool first = true;
    for (const EvalSample& sample : run.samples) {
      if (sample.record != record || std::find(steps.begin(), steps.end(), sample.step) == steps.end())
        continue;
      if (first) {
        page.quotation(fmt::format("record {}: prompt", record), shortened(sample.prompt));
        page.quotation("expected", shortened(sample.expected));
        first = false;
      }
      page.quotation(fmt::format("answer after step {}{}", sample.step, sample.cut ? " (cut short)" : ""),
                     shortened(sample.answer));
    }
  }
}

void add_run_snapshots(HtmlPage& page, const RunHistory& run) {
  if (run.snapshots.empty()) {
    page.paragraph("There is none yet.");
    return;
  }
  HtmlTable table{"In snapshots/, by step.",
                  {"step", "complete", "lowest held-out loss so far", "ranks", "ZeRO stage"},
                  {}};
  const auto number = [](const auto& value) { return value ? fmt::format("{:.6g}", double(*value)) : kDash; };
  for (const SnapshotInfo& snapshot : run.snapshots)
    table.rows.push_back({std::to_string(snapshot.step), snapshot.complete ? "yes" : "no",
                          number(snapshot.best_eval_loss), number(snapshot.world_size),
                          number(snapshot.zero_stage)});
  page.table(table);
}

/// "sharing.layers" and the like, in the file's order.
std::vector<std::pair<std::string, std::string>> flat_settings(const Json& config) {
  std::vector<std::pair<std::string, std::string>> flat;
  if (!config.is_object()) return flat;
  for (const auto& [key, value] : config.items()) {
    if (!value.is_object()) {
      flat.emplace_back(printable(key), text_of(value));
      continue;
    }
    for (const auto& [inner, each] : value.items())
      flat.emplace_back(printable(key + "." + inner), text_of(each));
  }
  return flat;
}

std::string value_in(const RunHistory& run, const std::string& key) {
  for (const auto& [name, value] : flat_settings(run.config))
    if (name == key) return value;
  return kDash;
}

}  // namespace

void add_data(HtmlPage& page, Runs runs) {
  for_each_run(page, runs, "Data and lengths", [&](const RunHistory& run) { add_run_data(page, run); });
}

void add_samples(HtmlPage& page, Runs runs) {
  for_each_run(page, runs, "Samples at each evaluation",
               [&](const RunHistory& run) { add_run_samples(page, run); });
}

void add_snapshots(HtmlPage& page, Runs runs) {
  for_each_run(page, runs, "Snapshots", [&](const RunHistory& run) { add_run_snapshots(page, run); });
}

void add_settings(HtmlPage& page, Runs runs) {
  page.heading("Settings");
  std::vector<std::string> keys;
  for (const NamedRun& run : runs)
    for (const auto& [key, value] : flat_settings(run.history->config))
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  HtmlTable differ{"Those that differ.", {""}, {}}, same{"config.json of the run folder.", {"", "value"}, {}};
  if (runs.size() > 1) same.caption = "Those that are the same.";
  for (const NamedRun& run : runs) differ.columns.push_back(run.name);
  for (const std::string& key : keys) {
    std::vector<std::string> row = {key};
    for (const NamedRun& run : runs) row.push_back(value_in(*run.history, key));
    const bool all_same =
        std::all_of(row.begin() + 1, row.end(), [&](const auto& value) { return value == row[1]; });
    if (all_same) {
      same.rows.push_back({key, row[1]});
    } else {
      differ.rows.push_back(std::move(row));
    }
  }
  if (keys.empty()) page.paragraph("There is no config.json.");
  if (!differ.rows.empty()) page.table(differ);
  if (!same.rows.empty()) page.table(same);
}

}  // namespace satune
