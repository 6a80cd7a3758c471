// Order statistics of measurements.
#pragma once

#include <vector>

namespace satune {

/// The value below which `share` (0 to 1) of `values` lie, between neighbours by straight line; 0.5 is the
/// median. `values` must not be empty.
double percentile(std::vector<double> values, double share);

}  // namespace satune
