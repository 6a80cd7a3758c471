#include "evaluation/head_assignment.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace satune {
namespace {

/// Rows are matched one by one. Potentials keep every reduced cost at 0 or above and that of matched pairs at
/// 0, so that a row's cheapest path to a free column keeps the matching optimal.
class Matching {
 public:
  Matching(std::span<const double> values, int64_t n)
      : values_(values), n_(n), row_potential_(n), column_potential_(n), row_of_(n, -1) {}

  void add_row(int64_t row) {
    std::vector<double> distance(n_, std::numeric_limits<double>::infinity());
    std::vector<int64_t> previous(n_, -1);  // column before this one on the path; -1 = the new row
    std::vector<bool> done(n_);
    double reached = 0;
    int64_t from_row = row, from_column = -1;
    while (true) {
      for (int64_t c = 0; c < n_; ++c) {
        const double length = reached + reduced_cost(from_row, c);
        if (done[c] || length >= distance[c]) continue;
        distance[c] = length;
        previous[c] = from_column;
      }
      const int64_t nearest = nearest_column(distance, done);
      reached = distance[nearest];
      done[nearest] = true;
      from_column = nearest;
      if (row_of_[nearest] < 0) break;
      from_row = row_of_[nearest];
    }
    update_potentials(row, reached, distance, done);
    for (int64_t c = from_column; c >= 0; c = previous[c])
      row_of_[c] = previous[c] < 0 ? row : row_of_[previous[c]];
  }

  std::vector<int64_t> columns() const {
    std::vector<int64_t> result(n_);
    for (int64_t c = 0; c < n_; ++c) result[row_of_[c]] = c;
    return result;
  }

 private:
  double reduced_cost(int64_t row, int64_t column) const {
    return -values_[row * n_ + column] - row_potential_[row] - column_potential_[column];
  }

  int64_t nearest_column(const std::vector<double>& distance, const std::vector<bool>& done) const {
    int64_t nearest = -1;
    for (int64_t c = 0; c < n_; ++c)
      if (!done[c] && (nearest < 0 || distance[c] < distance[nearest])) nearest = c;
    return nearest;
  }

  void update_potentials(int64_t row, double reached, const std::vector<double>& distance,
                         const std::vector<bool>& done) {
    row_potential_[row] += reached;
    for (int64_t c = 0; c < n_; ++c) {
      if (!done[c]) continue;
      column_potential_[c] += distance[c] - reached;
      if (row_of_[c] >= 0) row_potential_[row_of_[c]] += reached - distance[c];
    }
  }

  std::span<const double> values_;
  int64_t n_;
  std::vector<double> row_potential_, column_potential_;
  std::vector<int64_t> row_of_;  ///< by column; -1 = free
};

}  // namespace

std::vector<int64_t> best_assignment(std::span<const double> values, int64_t n) {
  if (static_cast<int64_t>(values.size()) != n * n)
    throw std::logic_error("best_assignment: not n * n values");
  Matching matching(values, n);
  for (int64_t row = 0; row < n; ++row) matching.add_row(row);
  return matching.columns();
}

}  // namespace satune
