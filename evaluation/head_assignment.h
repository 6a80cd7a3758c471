// Which of the anchor's heads serves which head of a layer best.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace satune {

/// The permutation p that maximises sum_i value[i][p(i)] for a square matrix of n * n values, row-major: the
/// Hungarian algorithm by shortest augmenting paths (Kuhn 1955, Munkres 1957), O(n^3). Values are finite. Of
/// equally good ones, always the same.
std::vector<int64_t> best_assignment(std::span<const double> values, int64_t n);

}  // namespace satune
