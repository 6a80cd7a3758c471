// Summary and curves.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "evaluation/run_report/curves.h"
#include "evaluation/run_report/run_sections.h"

namespace satune {
namespace {

std::string number(double value) {
  return fmt::format("{:.6g}", value);
}

RunMetric metric_of(std::string_view key) {
  for (const MetricGroup& group : metric_groups())
    for (const RunMetric& metric : group.metrics)
      if (metric.key == key) return metric;
  return {std::string(key), std::string(key), ""};
}

CurveSummary summary_of(const RunHistory& run, std::string_view key) {
  return summarise(run.rows.steps, values_of(run, metric_of(key)));
}

/// f(summary) where there is a number, else a dash.
template <typename F>
std::string cell(const RunHistory& run, std::string_view key, F&& f) {
  const CurveSummary summary = summary_of(run, key);
  return summary.count == 0 ? kDash : f(summary);
}

std::string steps_cell(const RunHistory& run) {
  const std::string done = run.rows.steps.empty() ? "0" : number(run.rows.steps.back());
  const auto planned = run.data.find("total_steps");
  if (run.data.is_object() && planned != run.data.end() && planned->is_number_integer())
    return fmt::format("{} of {}", done, planned->get<int64_t>());
  return done;
}

std::string setting(const RunHistory& run, const Json::json_pointer& key) {
  if (!run.config.is_object() || !run.config.contains(key)) return kDash;
  const Json& value = run.config.at(key);
  if (value.is_string())
    return value.get<std::string>().empty() ? "none" : printable(value.get<std::string>());
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Of the whole run, in watt hours.
std::string energy_cell(const RunHistory& run) {
  const std::vector<double>&power = run.rows.column("device_power_w"),
        &seconds = run.rows.column("step_seconds");
  double joules = 0;
  for (size_t i = 0; i < power.size() && i < seconds.size(); ++i)
    if (std::isfinite(power[i]) && std::isfinite(seconds[i])) joules += power[i] * seconds[i];
  if (joules == 0) return kDash;
  return number(joules * static_cast<double>(world_size_of(run).value_or(1)) / 3600) + " Wh";
}

std::string seconds_cell(const RunHistory& run) {
  double sum = 0;
  for (const double seconds : run.rows.column("step_seconds"))
    if (std::isfinite(seconds)) sum += seconds;
  return number(sum) + " s";
}

struct SummaryRow {
  std::string name;
  std::string (*cell)(const RunHistory&);
};

const std::vector<SummaryRow>& summary_rows() {
  static const std::vector<SummaryRow> rows = {
      {"steps finished", steps_cell},
      {"tokens trained",
       [](const RunHistory& run) {
         return cell(run, "num_tokens", [](const CurveSummary& s) { return fmt::format("{:.0f}", s.last); });
       }},
      {"epochs",
       [](const RunHistory& run) {
         return cell(run, "epoch", [](const CurveSummary& s) { return number(s.last); });
       }},
      {"time in steps", seconds_cell},
      {"last training loss",
       [](const RunHistory& run) {
         return cell(run, "loss", [](const CurveSummary& s) { return number(s.last); });
       }},
      {"last held-out loss",
       [](const RunHistory& run) {
         return cell(run, "eval_loss", [](const CurveSummary& s) {
           return fmt::format("{} (step {:.0f})", number(s.last), s.last_step);
         });
       }},
      {"lowest held-out loss",
       [](const RunHistory& run) {
         return cell(run, "eval_loss", [](const CurveSummary& s) {
           return fmt::format("{} (step {:.0f})", number(s.low), s.low_step);
         });
       }},
      {"tokens a second, median",
       [](const RunHistory& run) {
         return cell(run, "tokens_per_s", [](const CurveSummary& s) { return number(s.median); });
       }},
      {"peak memory of the fullest rank",
       [](const RunHistory& run) {
         return cell(run, "peak_memory_bytes", [](const CurveSummary& s) { return number(s.high) + " GiB"; });
       }},
      {"energy", energy_cell},
      {"energy of a token, median",
       [](const RunHistory& run) {
         return cell(run, kEnergyKey, [](const CurveSummary& s) { return number(s.median) + " J"; });
       }},
      {"ranks",
       [](const RunHistory& run) {
         const auto ranks = world_size_of(run);
         return ranks ? std::to_string(*ranks) : "several";
       }},
      {"model",
       [](const RunHistory& run) { return setting(run, Json::json_pointer("/model_name_or_path")); }},
      {"shared layers",
       [](const RunHistory& run) { return setting(run, Json::json_pointer("/sharing/layers")); }},
      {"precision", [](const RunHistory& run) { return setting(run, Json::json_pointer("/precision")); }},
  };
  return rows;
}

/// Points of a curve: as many as make no difference at the width of a figure, fewer where many runs share it.
size_t points_for(size_t curves) {
  return std::clamp<size_t>(4000 / std::max<size_t>(1, curves), 300, 2000);
}

std::string describe(const std::string& name, const CurveSummary& s) {
  return fmt::format(
      "{}: {} at step {:.0f}, {} at step {:.0f}; lowest {} at step {:.0f}, highest {} at step {:.0f}.", name,
      number(s.first), s.first_step, number(s.last), s.last_step, number(s.low), s.low_step, number(s.high),
      s.high_step);
}

struct NamedMetric {
  std::string name;
  const RunHistory* run = nullptr;
  RunMetric metric;
};

void add_chart(HtmlPage& page, const std::string& title, const std::string& unit,
               const std::vector<NamedMetric>& curves) {
  LineChart chart{.title = title, .description = title + ".", .x_axis = "step", .y_axis = unit};
  bool any = false;
  for (const NamedMetric& each : curves) {
    const std::vector<double> values = values_of(*each.run, each.metric);
    chart.curves.push_back(thinned(each.name, each.run->rows.steps, values, points_for(curves.size())));
    const CurveSummary summary = summarise(each.run->rows.steps, values);
    if (summary.count == 0) continue;
    any = true;
    chart.description += " " + describe(each.name, summary);
  }
  if (any) page.figure(draw(chart));
}

/// The training loss of a single run has that on held-out data beside it.
void add_metric(HtmlPage& page, Runs runs, const RunMetric& metric) {
  std::vector<NamedMetric> curves;
  if (runs.size() == 1 && metric.key == "eval_loss") return;
  for (const NamedRun& run : runs)
    curves.push_back({runs.size() == 1 ? metric.key : run.name, run.history, metric});
  std::string title = metric.title;
  if (runs.size() == 1 && metric.key == "loss" && !runs[0].history->rows.column("eval_loss").empty()) {
    curves.push_back({"eval_loss", runs[0].history, metric_of("eval_loss")});
    title += ", and that on held-out data";
  }
  add_chart(page, title, metric.unit, curves);
}

void add_numbers(HtmlPage& page, Runs runs, const MetricGroup& group) {
  HtmlTable table{"Numbers of the curves above.",
                  {"", "unit", "rows", "first", "last", "lowest", "at step", "median", "highest", "at step"},
                  {}};
  for (const RunMetric& metric : group.metrics)
    for (const NamedRun& run : runs) {
      const CurveSummary s = summarise(run.history->rows.steps, values_of(*run.history, metric));
      if (s.count == 0) continue;
      table.rows.push_back({runs.size() == 1 ? metric.key : fmt::format("{}, {}", metric.key, run.name),
                            metric.unit, std::to_string(s.count), number(s.first), number(s.last),
                            number(s.low), number(s.low_step), number(s.median), number(s.high),
                            number(s.high_step)});
    }
  if (!table.rows.empty()) page.table(table);
}

/// What no run has numbers of, so that nobody looks for it.
void add_absent(HtmlPage& page, Runs runs, const MetricGroup& group) {
  std::string absent;
  for (const RunMetric& metric : group.metrics) {
    const bool there = std::any_of(runs.begin(), runs.end(), [&](const NamedRun& run) {
      return summarise(run.history->rows.steps, values_of(*run.history, metric)).count > 0;
    });
    if (there) continue;
    absent += (absent.empty() ? "" : "; ") + metric.key;
    if (!metric.needs.empty()) absent += fmt::format(" (needs {})", metric.needs);
  }
  if (!absent.empty()) page.paragraph("No row has: " + absent + ".");
}

void explain_energy(HtmlPage& page, Runs runs) {
  for (const NamedRun& run : runs) {
    if (run.history->rows.column("device_power_w").empty()) continue;
    const auto ranks = world_size_of(*run.history);
    page.paragraph(fmt::format(
        "{}Energy of a token: the power of rank 0's card, as read once a step, over tokens a second{}.",
        runs.size() == 1 ? "" : run.name + ". ",
        !ranks       ? "; of rank 0's card alone, since no snapshot tells the number of ranks"
        : *ranks > 1 ? fmt::format(", times the {} ranks, which are taken to draw the same", *ranks)
                     : ""));
  }
}

}  // namespace

void add_summary(HtmlPage& page, Runs runs) {
  page.heading("Summary");
  HtmlTable table{"", {""}, {}};
  table.caption = "What the run folder tells.";
  for (const NamedRun& run : runs) table.columns.push_back(run.name);
  for (const SummaryRow& row : summary_rows()) {
    std::vector<std::string> cells = {row.name};
    for (const NamedRun& run : runs) cells.push_back(row.cell(*run.history));
    table.rows.push_back(std::move(cells));
  }
  page.table(table);
}

void add_curves(HtmlPage& page, Runs runs) {
  bool thinned_any = false;
  for (const NamedRun& run : runs) thinned_any |= run.history->rows.steps.size() > points_for(runs.size());
  for (const MetricGroup& group : metric_groups()) {
    page.heading(group.title);
    for (const RunMetric& metric : group.metrics) add_metric(page, runs, metric);
    add_numbers(page, runs, group);
    add_absent(page, runs, group);
    if (group.title == "Device and energy") explain_energy(page, runs);
  }
  if (thinned_any)
    page.paragraph(
        "Long curves are drawn through the lowest and the highest number of each stretch of steps; the "
        "tables "
        "count all of them.");
}

}  // namespace satune
