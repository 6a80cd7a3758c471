// Sums over items that can be added, in any order, before anything is divided.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"

namespace satune {

/// Items that each carry a value and a weight (the loss of a record and its target tokens; 0 or 1 and 1).
/// The result is the ratio of the sums.
struct RatioSums {
  int64_t items = 0;
  double value = 0, weight = 0;
  double value_squared = 0, value_weight = 0, weight_squared = 0;

  void add(double item_value, double item_weight);
  RatioSums& operator+=(const RatioSums& other);

  /// sum of values / sum of weights; NaN without items.
  double ratio() const;

  /// Standard error of ratio() over the items: sqrt(n / (n - 1) * sum_i (value_i - ratio * weight_i)^2) /
  /// sum of weights (the linearised ratio estimator, Cochran, Sampling Techniques, 6.4). With all weights 1
  /// it is the sample standard deviation over sqrt(n), as lm-eval prints it. Nothing for fewer than 2 items.
  std::optional<double> standard_error() const;
};

/// Puts `key` and, where there is an error, key_stderr.
void add_metric(Json& json, const std::string& key, double value, std::optional<double> error);
/// The ratio with its standard error.
void add_metric(Json& json, const std::string& key, const RatioSums& sums);
/// The mean of what the results have under `key`, with its standard error.
void add_mean(Json& json, const std::string& key, const std::vector<Json>& results);

}  // namespace satune
