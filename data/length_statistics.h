// How long things are: the usual figures, and a histogram whose bars a long tail does not flatten.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace satune {

struct LengthStatistics {
  int64_t count = 0, sum = 0, shortest = 0, longest = 0;
  int64_t median = 0, p90 = 0, p99 = 0;  ///< nearest rank
  /// Bar i counts lengths from edges[i] to edges[i + 1] - 1. Edges are 0 and the numbers 2^k and 3 * 2^k, so
  /// that two bars are an octave; bars below the shortest and above the longest are left out.
  std::vector<int64_t> edges, counts;

  double mean() const { return count == 0 ? 0 : static_cast<double>(sum) / static_cast<double>(count); }
};

LengthStatistics length_statistics(std::vector<int64_t> lengths);

/// A line a bar, the widest of `width` characters. `limit` > 0 marks the bar that it lies in.
std::vector<std::string> histogram_lines(const LengthStatistics& statistics, int width, int64_t limit = 0);

}  // namespace satune
