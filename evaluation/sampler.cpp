#include "evaluation/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "data/files/error.h"

namespace satune {
namespace {

int32_t greedy(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct Candidate {
  int32_t id;
  double weight;  ///< unnormalised probability
};

/// Most probable first; the most probable weighs 1.
std::vector<Candidate> ranked(std::span<const float> logits, double temperature, int64_t top_k) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const size_t keep = top_k > 0 ? std::min<size_t>(order.size(), static_cast<size_t>(top_k)) : order.size();
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(keep), order.end(), before);
  std::vector<Candidate> candidates(keep);
  const double highest = logits[order[0]];
  for (size_t i = 0; i < keep; ++i)
    candidates[i] = {order[i], std::exp((logits[order[i]] - highest) / temperature)};
  return candidates;
}

/// In [0, 1), 53 bits.
double uniform(RandomStream& random) {
  return static_cast<double>(random.next() >> 11) * 0x1p-53;
}

double total_weight(const std::vector<Candidate>& candidates) {
  return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                         [](double sum, const Candidate& c) { return sum + c.weight; });
}

}  // namespace

void check_sampling_options(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature))
    throw bad_input("--temperature", fmt::format("{}", options.temperature),
                    "0 (greedy) or a positive number");
  if (options.top_k < 0) throw bad_input("--top-k", fmt::format("{}", options.top_k), "0 (all) or more");
  if (!(options.top_p > 0 && options.top_p <= 1))
    throw bad_input("--top-p", fmt::format("{}", options.top_p), "a number above 0 and at most 1");
}

Sampler::Sampler(SamplingOptions options) : options_(options), random_(options.seed, "sampling") {
  check_sampling_options(options_);
}

int32_t Sampler::next(std::span<const float> logits) {
  const bool usable =
      std::none_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x) || x == INFINITY; }) &&
      std::any_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
  if (!usable)
    throw std::runtime_error("generation: the logits are not finite: the model's weights are damaged");
  if (options_.temperature == 0) return greedy(logits);

  std::vector<Candidate> candidates = ranked(logits, options_.temperature, options_.top_k);
  if (options_.top_p < 1) {
    const double enough = options_.top_p * total_weight(candidates);
    double mass = 0;
    size_t keep = 0;
    while (keep < candidates.size() && mass < enough) mass += candidates[keep++].weight;
    candidates.resize(std::max<size_t>(keep, 1));
  }
  double target = uniform(random_) * total_weight(candidates);
  for (const Candidate& candidate : candidates) {
    target -= candidate.weight;
    if (target < 0) return candidate.id;
  }
  return candidates.back().id;  // rounding left a crumb of mass
}

}  // namespace satune
