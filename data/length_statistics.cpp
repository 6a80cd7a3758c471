#include "data/length_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace satune {
namespace {

/// 0, 8, 12, 16, 24, 32, 48, ...: up to the first that is above `longest`.
std::vector<int64_t> all_edges(int64_t longest) {
  std::vector<int64_t> edges = {0, 8};
  for (int64_t octave = 8; edges.back() <= longest; octave *= 2) {
    edges.push_back(octave + octave / 2);
    edges.push_back(octave * 2);
  }
  return edges;
}

}  // namespace

LengthStatistics length_statistics(std::vector<int64_t> lengths) {
  LengthStatistics statistics;
  if (lengths.empty()) return statistics;
  std::sort(lengths.begin(), lengths.end());
  statistics.count = static_cast<int64_t>(lengths.size());
  statistics.sum = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  statistics.shortest = lengths.front();
  statistics.longest = lengths.back();
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(lengths.size())));
    return lengths[std::max<size_t>(rank, 1) - 1];
  };
  statistics.median = at(0.5);
  statistics.p90 = at(0.9);
  statistics.p99 = at(0.99);
  const std::vector<int64_t> edges = all_edges(statistics.longest);
  for (size_t i = 0; i + 1 < edges.size(); ++i) {
    if (edges[i + 1] <= statistics.shortest || edges[i] > statistics.longest) continue;
    const auto first = std::lower_bound(lengths.begin(), lengths.end(), edges[i]);
    const auto last = std::lower_bound(first, lengths.end(), edges[i + 1]);
    if (statistics.edges.empty()) statistics.edges.push_back(edges[i]);
    statistics.edges.push_back(edges[i + 1]);
    statistics.counts.push_back(last - first);
  }
  return statistics;
}

std::vector<std::string> histogram_lines(const LengthStatistics& statistics, int width, int64_t limit) {
  std::vector<std::string> lines;
  if (statistics.counts.empty()) return lines;
  const int64_t most = *std::max_element(statistics.counts.begin(), statistics.counts.end());
  for (size_t i = 0; i < statistics.counts.size(); ++i) {
    const int64_t begin = statistics.edges[i], end = statistics.edges[i + 1], count = statistics.counts[i];
    // What is there is seen, however few: a bar of one character at least.
    const auto bar = count == 0 ? 0 : std::max<int64_t>(1, count * width / most);
    std::string line = fmt::format("{:>7} - {:<7} {:>8}  {}", begin, end - 1, count,
                                   std::string(static_cast<size_t>(bar), '#'));
    if (limit > 0 && begin <= limit && limit < end) line += fmt::format(" <- max_length {}", limit);
    while (line.ends_with(' ')) line.pop_back();
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace satune
