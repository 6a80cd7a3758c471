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

double weight_of(float logit, float highest, double temperature) {
  return std::exp((static_cast<double>(logit) - highest) / temperature);
}

/// The `count` most probable, most probable first; the most probable weighs 1.
std::vector<Candidate> most_probable(std::span<const float> logits, double temperature, size_t count) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(count), order.end(), before);
  std::vector<Candidate> candidates(count);
  for (size_t i = 0; i < count; ++i)
    candidates[i] = {order[i], weight_of(logits[order[i]], logits[order[0]], temperature)};
  return candidates;
}

/// All of them, by id.
std::vector<Candidate> all_candidates(std::span<const float> logits, double temperature) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  std::vector<Candidate> candidates(logits.size());
  for (size_t id = 0; id < logits.size(); ++id)
    candidates[id] = {static_cast<int32_t>(id), weight_of(logits[id], highest, temperature)};
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

/// Keeps the first whose weights reach `enough`, at least one. Whether they do.
bool cut_at_mass(std::vector<Candidate>& candidates, double enough) {
  double mass = 0;
  size_t keep = 0;
  while (keep < candidates.size() && mass < enough) mass += candidates[keep++].weight;
  candidates.resize(std::max<size_t>(keep, 1));
  return mass >= enough;
}

/// Ranking a large vocabulary costs more than the model's step does on small ones, and the mass is seldom
/// spread far: a few are ranked, and more of them where they do not suffice.
std::vector<Candidate> nucleus(std::span<const float> logits, double temperature, double top_p) {
  const double enough = top_p * total_weight(all_candidates(logits, temperature));
  for (size_t count = 128; count < logits.size(); count *= 16) {
    std::vector<Candidate> candidates = most_probable(logits, temperature, count);
    if (cut_at_mass(candidates, enough)) return candidates;
  }
  std::vector<Candidate> candidates = most_probable(logits, temperature, logits.size());
  cut_at_mass(candidates, enough);
  return candidates;
}

std::vector<Candidate> candidates_of(std::span<const float> logits, const SamplingOptions& options) {
  if (options.top_k == 0 && options.top_p < 1) return nucleus(logits, options.temperature, options.top_p);
  if (options.top_k == 0) return all_candidates(logits, options.temperature);
  std::vector<Candidate> candidates =
      most_probable(logits, options.temperature, static_cast<size_t>(options.top_k));
  if (options.top_p < 1) cut_at_mass(candidates, options.top_p * total_weight(candidates));
  return candidates;
}

}  // namespace

void check_sampling_options(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature))
    throw bad_input("--temperature", fmt::format("{}", options.temperature),
                    "0 (greedy) or a positive number");
  if (options.top_k < 0) throw bad_input("--top-k", fmt::format("{}", options.top_k), "0 (all) or more");
  if (!(options.top_p > 0 && options.top_p <= 1))
    throw bad_input("--top-p", fmt::format("{}", options.top_p), "a number above 0 and at most 1");
  // Beyond these the penalised logits of a sound model leave the range of floats.
  if (!(options.repetition_penalty >= 1e-3 && options.repetition_penalty <= 1e3))
    throw bad_input("--repetition-penalty", fmt::format("{}", options.repetition_penalty),
                    "a number from 0.001 to 1000 (1 = none)");
}

Sampler::Sampler(SamplingOptions options, uint64_t index, std::span<const int32_t> prompt)
    : options_(options), random_(options.seed, "sampling", index) {
  check_sampling_options(options_);
  if (options_.repetition_penalty == 1 || prompt.empty()) return;
  seen_.resize(static_cast<size_t>(*std::max_element(prompt.begin(), prompt.end())) + 1);
  for (const int32_t id : prompt) seen_[static_cast<size_t>(id)] = true;
}

int32_t Sampler::next(std::span<const float> logits) {
  const bool penalises = options_.repetition_penalty != 1;
  if (penalises) logits = penalised(logits);
  // After the penalty, which can carry huge ones out of the range of floats. draw() counts on a finite one.
  const bool usable =
      std::none_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x) || x == INFINITY; }) &&
      std::any_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
  if (!usable)
    throw std::runtime_error("generation: the logits are not finite: the model's weights are damaged");
  const int32_t id = draw(logits);
  if (penalises) seen_[static_cast<size_t>(id)] = true;
  return id;
}

std::span<const float> Sampler::penalised(std::span<const float> logits) {
  scratch_.assign(logits.begin(), logits.end());
  seen_.resize(logits.size());
  const auto penalty = static_cast<float>(options_.repetition_penalty);
  for (size_t id = 0; id < seen_.size(); ++id)
    if (seen_[id]) scratch_[id] = scratch_[id] < 0 ? scratch_[id] * penalty : scratch_[id] / penalty;
  return scratch_;
}

int32_t Sampler::draw(std::span<const float> logits) {
  if (options_.temperature == 0) return greedy(logits);
  const std::vector<Candidate> candidates = candidates_of(logits, options_);
  double target = uniform(random_) * total_weight(candidates);
  for (const Candidate& candidate : candidates) {
    target -= candidate.weight;
    if (target < 0) return candidate.id;
  }
  // Rounding left a crumb of mass. A masked token, which weighs nothing, is not what it falls to.
  return std::find_if(candidates.rbegin(), candidates.rend(), [](const Candidate& c) { return c.weight > 0; })
      ->id;
}

}  // namespace satune
