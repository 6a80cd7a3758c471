#include "evaluation/run_report/curves.h"

#include <algorithm>
#include <cmath>

namespace satune {
namespace {

constexpr size_t kMarkedPoints = 60;  // of more, discs would merge
constexpr double kGibibyte = 1024.0 * 1024 * 1024;

void add_point(Curve& curve, double x, double y) {
  curve.x.push_back(x);
  curve.y.push_back(y);
}

}  // namespace

const std::vector<MetricGroup>& metric_groups() {
  static const std::string card = "a card whose driver tells it";
  static const std::vector<MetricGroup> groups = {
      {"Learning",
       {{"loss", "Training loss", "loss"},
        {"eval_loss", "Loss on held-out data", "loss", 1, "an evaluation"},
        {"mean_token_accuracy", "Target tokens predicted right", "share"},
        {"learning_rate", "Learning rate", "learning rate"},
        {"grad_norm", "Gradient norm before clipping", "norm"}}},
      {"Speed",
       {{"tokens_per_s", "Tokens a second, all ranks", "tokens/s"},
        {"step_seconds", "Seconds of a step", "s"},
        {"mfu", "Share of the devices' 16-bit peak (MFU)", "%", 100, "a card of known peak in 16 bits"}}},
      {"Device and energy",
       {{"peak_memory_bytes", "Peak memory of the fullest rank", "GiB", 1 / kGibibyte},
        {"device_utilisation", "Utilisation of rank 0's card", "%", 1, card},
        {"device_power_w", "Power of rank 0's card", "W", 1, card},
        {"device_temperature_c", "Temperature of rank 0's card",
         "\xC2\xB0"
         "C",
         1, card},
        {kEnergyKey, "Energy of a token", "J", 1, "the power of a card"}}},
  };
  return groups;
}

std::vector<double> energy_per_token(const StepColumns& rows, int64_t world_size) {
  const std::vector<double>&power = rows.column("device_power_w"), &speed = rows.column("tokens_per_s");
  if (power.empty() || speed.empty()) return {};
  std::vector<double> energy(power.size());
  for (size_t i = 0; i < power.size(); ++i)
    energy[i] = speed[i] > 0 ? power[i] * static_cast<double>(world_size) / speed[i] : std::nan("");
  return energy;
}

std::optional<int64_t> world_size_of(const RunHistory& run) {
  for (auto snapshot = run.snapshots.rbegin(); snapshot != run.snapshots.rend(); ++snapshot)
    if (snapshot->world_size) return snapshot->world_size;
  if (run.rows.column("sent_reduced_bytes").empty()) return 1;
  return std::nullopt;
}

std::vector<double> values_of(const RunHistory& run, const RunMetric& metric) {
  std::vector<double> values = metric.key == kEnergyKey
                                   ? energy_per_token(run.rows, world_size_of(run).value_or(1))
                                   : run.rows.column(metric.key);
  for (double& value : values) value *= metric.scale;
  return values;
}

CurveSummary summarise(std::span<const double> steps, std::span<const double> values) {
  CurveSummary summary;
  std::vector<double> finite;
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = values[i];
    if (!std::isfinite(value)) continue;
    if (finite.empty()) {
      summary.first = summary.low = summary.high = value;
      summary.first_step = summary.low_step = summary.high_step = steps[i];
    }
    if (value < summary.low) summary.low = value, summary.low_step = steps[i];
    if (value > summary.high) summary.high = value, summary.high_step = steps[i];
    summary.last = value;
    summary.last_step = steps[i];
    finite.push_back(value);
  }
  summary.count = finite.size();
  if (finite.empty()) return summary;
  const auto middle = finite.begin() + static_cast<std::ptrdiff_t>(finite.size() / 2);
  std::nth_element(finite.begin(), middle, finite.end());
  summary.median = *middle;
  if (finite.size() % 2 == 0)
    summary.median = (*std::max_element(finite.begin(), middle) + summary.median) / 2;
  return summary;
}

Curve thinned(std::string name, std::span<const double> steps, std::span<const double> values, size_t most) {
  Curve all{std::move(name), {}, {}};
  for (size_t i = 0; i < values.size(); ++i)
    if (std::isfinite(values[i])) add_point(all, steps[i], values[i]);
  const size_t count = all.x.size();
  all.discs = count <= kMarkedPoints;
  if (count <= most) return all;
  Curve few{all.name, {}, {}, false};
  const size_t stretches = (most - 2) / 2, inner = count - 2;
  add_point(few, all.x.front(), all.y.front());
  for (size_t i = 0; i < stretches; ++i) {
    const auto begin = all.y.begin() + 1, from = begin + static_cast<std::ptrdiff_t>(i * inner / stretches),
               to = begin + static_cast<std::ptrdiff_t>((i + 1) * inner / stretches);
    auto [low, high] = std::minmax_element(from, to);
    if (high < low) std::swap(low, high);  // now in their order
    for (const auto point : {low, high})
      if (point == low || high != low)
        add_point(few, all.x[static_cast<size_t>(point - all.y.begin())], *point);
  }
  add_point(few, all.x.back(), all.y.back());
  return few;
}

}  // namespace satune
