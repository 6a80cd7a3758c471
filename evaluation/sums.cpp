#include "evaluation/sums.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace satune {

void RatioSums::add(double item_value, double item_weight) {
  ++items;
  value += item_value;
  weight += item_weight;
  value_squared += item_value * item_value;
  value_weight += item_value * item_weight;
  weight_squared += item_weight * item_weight;
}

RatioSums& RatioSums::operator+=(const RatioSums& other) {
  items += other.items;
  value += other.value;
  weight += other.weight;
  value_squared += other.value_squared;
  value_weight += other.value_weight;
  weight_squared += other.weight_squared;
  return *this;
}

double RatioSums::ratio() const {
  return weight > 0 ? value / weight : std::numeric_limits<double>::quiet_NaN();
}

std::optional<double> RatioSums::standard_error() const {
  if (items < 2 || !(weight > 0)) return std::nullopt;
  const double mean = ratio(), n = static_cast<double>(items);
  // Rounding can leave a tiny negative sum where all items are equal.
  const double squares =
      std::max(0.0, value_squared - 2 * mean * value_weight + mean * mean * weight_squared);
  return std::sqrt(n / (n - 1) * squares) / weight;
}

void add_metric(Json& json, const std::string& key, double value, std::optional<double> error) {
  json[key] = value;
  if (error) json[key + "_stderr"] = *error;
}

void add_metric(Json& json, const std::string& key, const RatioSums& sums) {
  add_metric(json, key, sums.ratio(), sums.standard_error());
}

void add_mean(Json& json, const std::string& key, const std::vector<Json>& results) {
  RatioSums sums;
  for (const Json& result : results) sums.add(result[key], 1.0);
  add_metric(json, key, sums);
}

}  // namespace satune
