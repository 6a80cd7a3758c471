#include "data/batches.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <set>
#include <utility>

#include "data/files/error.h"
#include "data/fingerprint.h"
#include "data/random.h"

namespace satune {
namespace {

constexpr size_t kRememberedPlans = 2;

std::vector<int64_t> sample_order(int64_t samples, const PlanOptions& options, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(samples));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (options.shuffle) {
    RandomStream random(options.seed, "sample order", static_cast<uint64_t>(epoch));
    shuffle(std::span(order), random);
  }
  return order;
}

using Rows = std::vector<std::vector<int64_t>>;

/// Best fit: each sample goes into the open row whose room is the smallest that suffices, of equal ones the
/// oldest.
Rows pack(std::span<const int64_t> lengths, const std::vector<int64_t>& order, int64_t max_length) {
  Rows rows;
  std::set<std::pair<int64_t, size_t>> room;  // (tokens left, row)
  for (const int64_t sample : order) {
    const int64_t length = lengths[static_cast<size_t>(sample)];
    const auto fitting = room.lower_bound({length, 0});
    int64_t left = max_length;
    size_t row = rows.size();
    if (fitting == room.end()) {
      rows.emplace_back();
    } else {
      std::tie(left, row) = *fitting;
      room.erase(fitting);
    }
    rows[row].push_back(sample);
    // No sample is shorter than two tokens, so a row with less room than that is closed.
    if (left - length >= 2) room.emplace(left - length, row);
  }
  return rows;
}

std::vector<int64_t> sample_lengths(const Dataset& dataset) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < dataset.size(); ++i)
    lengths.push_back(static_cast<int64_t>(dataset.sample(i).tokens.size()));
  return lengths;
}

}  // namespace

EpochPlan::EpochPlan(const Dataset& dataset, const PlanOptions& options, int64_t epoch)
    : EpochPlan(sample_lengths(dataset), options, epoch) {}

EpochPlan::EpochPlan(std::span<const int64_t> lengths, const PlanOptions& options, int64_t epoch) {
  std::vector<int64_t> order = sample_order(static_cast<int64_t>(lengths.size()), options, epoch);
  if (!options.packing) {
    samples_ = std::move(order);
    row_starts_.resize(samples_.size() + 1);
    std::iota(row_starts_.begin(), row_starts_.end(), int64_t{0});
    return;
  }
  Rows rows = pack(lengths, order, options.max_length);
  if (options.shuffle) {  // the rows opened last are the emptiest: spread them over the epoch
    RandomStream random(options.seed, "row order", static_cast<uint64_t>(epoch));
    shuffle(std::span(rows), random);
  }
  row_starts_.push_back(0);
  for (const std::vector<int64_t>& row : rows) {
    samples_.insert(samples_.end(), row.begin(), row.end());
    row_starts_.push_back(static_cast<int64_t>(samples_.size()));
  }
}

std::span<const int64_t> EpochPlan::row(int64_t row) const {
  return rows_between(row, row + 1);
}

std::span<const int64_t> EpochPlan::rows_between(int64_t begin, int64_t end) const {
  const auto first = static_cast<size_t>(row_starts_[static_cast<size_t>(begin)]);
  const auto last = static_cast<size_t>(row_starts_[static_cast<size_t>(end)]);
  return std::span(samples_).subspan(first, last - first);
}

BatchSource::BatchSource(Dataset dataset, PlanOptions options)
    : dataset_(std::move(dataset)), options_(options) {
  if (dataset_.summary().longest > options_.max_length) {
    throw bad_input("max_length", std::to_string(options_.max_length),
                    fmt::format("at least {}, the longest sample", dataset_.summary().longest));
  }
}

int64_t BatchSource::rows(int64_t epoch) {
  if (!options_.packing) return dataset_.size();
  const auto known = rows_.find(epoch);
  if (known != rows_.end()) return known->second;
  return rows_[epoch] = plan(epoch).rows();
}

const EpochPlan& BatchSource::plan(int64_t epoch) {
  const auto known = plans_.find(epoch);
  if (known != plans_.end()) return known->second;
  if (plans_.size() >= kRememberedPlans) {
    const auto farther = [&](const auto& a, const auto& b) {
      return std::abs(a.first - epoch) < std::abs(b.first - epoch);
    };
    plans_.erase(std::max_element(plans_.begin(), plans_.end(), farther));
  }
  return plans_.emplace(epoch, EpochPlan(dataset_, options_, epoch)).first->second;
}

std::span<const int64_t> BatchSource::samples_of(int64_t epoch, int64_t first_row, int64_t count) {
  const EpochPlan& epoch_plan = plan(epoch);
  const int64_t begin = std::clamp<int64_t>(first_row, 0, epoch_plan.rows());
  const int64_t end = std::clamp<int64_t>(first_row + count, begin, epoch_plan.rows());
  return epoch_plan.rows_between(begin, end);
}

Batch BatchSource::make_batch(int64_t epoch, int64_t first_row, int64_t count) {
  std::vector<SampleView> documents;
  for (const int64_t sample : samples_of(epoch, first_row, count))
    documents.push_back(dataset_.sample(sample));
  return satune::make_batch(documents);
}

int64_t BatchSource::target_count(int64_t epoch, int64_t first_row, int64_t count) {
  int64_t targets = 0;
  for (const int64_t sample : samples_of(epoch, first_row, count))
    targets += dataset_.sample(sample).target_count();
  return targets;
}

int64_t BatchSource::token_count(int64_t epoch, int64_t first_row, int64_t count) {
  size_t tokens = 0;
  for (const int64_t sample : samples_of(epoch, first_row, count))
    tokens += dataset_.sample(sample).tokens.size();
  return static_cast<int64_t>(tokens);
}

std::vector<int64_t> BatchSource::record_numbers(int64_t epoch, int64_t first_row, int64_t count) {
  std::vector<int64_t> numbers;
  for (const int64_t sample : samples_of(epoch, first_row, count))
    numbers.push_back(dataset_.sample(sample).record_number);
  return numbers;
}

std::string BatchSource::fingerprint() const {
  Sha256 hash;
  hash.update_field(dataset_.fingerprint());
  hash.update_field(static_cast<uint64_t>(options_.packing ? options_.max_length : 0));
  hash.update_field(static_cast<uint64_t>(options_.shuffle));
  hash.update_field(options_.shuffle ? options_.seed : 0);
  return hash.hex();
}

void append_document(Batch& batch, std::span<const int32_t> tokens, int32_t prompt_length) {
  if (batch.document_starts.empty()) batch.document_starts.push_back(0);
  const auto size = static_cast<int32_t>(tokens.size());
  for (int32_t i = 0; i < size; ++i) {
    const bool learned = i + 1 < size && i + 1 >= prompt_length;
    batch.tokens.push_back(tokens[static_cast<size_t>(i)]);
    batch.targets.push_back(learned ? tokens[static_cast<size_t>(i) + 1] : kIgnoreTarget);
    batch.positions.push_back(i);
    batch.target_count += learned;
  }
  batch.document_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
}

Batch make_batch(std::span<const SampleView> documents) {
  Batch batch;
  batch.document_starts.push_back(0);
  size_t tokens = 0;
  for (const SampleView& document : documents) tokens += document.tokens.size();
  batch.tokens.reserve(tokens);
  batch.targets.reserve(tokens);
  batch.positions.reserve(tokens);
  for (const SampleView& document : documents)
    append_document(batch, document.tokens, document.prompt_length);
  return batch;
}

}  // namespace satune
