// The order of an epoch and its batches. Both are pure functions of (dataset, options, epoch, row), so a
// resume seeks to its row instead of replaying, and the global batch does not depend on the world size.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "data/batch.h"
#include "data/dataset.h"

namespace satune {

struct PlanOptions {
  int64_t max_length = 4096;  ///< tokens of a packed row; not below the longest sample
  bool packing = true;        ///< false = one sample a row
  bool shuffle = true;        ///< false = file order (evaluation)
  uint64_t seed = 42;
};

/// The rows of one epoch: every sample exactly once. With packing a sample goes, in shuffled order, into the
/// fullest open row that still has room (best fit); then the rows are shuffled.
class EpochPlan {
 public:
  EpochPlan(const Dataset& dataset, const PlanOptions& options, int64_t epoch);
  /// Of samples of these lengths in tokens, each at least 2.
  EpochPlan(std::span<const int64_t> lengths, const PlanOptions& options, int64_t epoch);

  int64_t rows() const { return static_cast<int64_t>(row_starts_.size()) - 1; }
  /// Sample indices of a row, in the order they are laid out.
  std::span<const int64_t> row(int64_t row) const;
  /// Those of rows [begin, end), one after the other.
  std::span<const int64_t> rows_between(int64_t begin, int64_t end) const;

 private:
  std::vector<int64_t> samples_;
  std::vector<int64_t> row_starts_;
};

/// A dataset and its epochs. Not safe for use by several threads at once (plans are remembered).
class BatchSource {
 public:
  /// Throws BadInput when a sample is longer than options.max_length.
  BatchSource(Dataset dataset, PlanOptions options);

  const Dataset& dataset() const { return dataset_; }
  const PlanOptions& options() const { return options_; }
  /// Rows of an epoch (0-based); packing makes it vary a little between epochs.
  int64_t rows(int64_t epoch);
  /// Valid until another epoch is asked for.
  const EpochPlan& plan(int64_t epoch);

  /// Rows [first_row, first_row + count) of an epoch, each sample a document. Rows past the epoch's end are
  /// left out, so the last batch is a true smaller one; a range wholly past it gives a batch of no tokens.
  Batch make_batch(int64_t epoch, int64_t first_row, int64_t count);
  /// make_batch(...).target_count, without building it.
  int64_t target_count(int64_t epoch, int64_t first_row, int64_t count);
  /// make_batch(...).tokens.size(), without building it.
  int64_t token_count(int64_t epoch, int64_t first_row, int64_t count);
  /// Record numbers (1-based, in the data file) of the same documents: what to name when a loss is not
  /// finite.
  std::vector<int64_t> record_numbers(int64_t epoch, int64_t first_row, int64_t count);

  /// Of the dataset and the options: the whole data order of every epoch.
  std::string fingerprint() const;

 private:
  std::span<const int64_t> samples_of(int64_t epoch, int64_t first_row, int64_t count);

  Dataset dataset_;
  PlanOptions options_;
  std::map<int64_t, int64_t> rows_;     ///< of every epoch asked for
  std::map<int64_t, EpochPlan> plans_;  ///< of the last epochs asked for
};

/// Appends one document to a batch: targets[i] = tokens[i + 1] where i + 1 >= prompt_length, positions from
/// 0.
void append_document(Batch& batch, std::span<const int32_t> tokens, int32_t prompt_length);

/// The whole batch of these documents.
Batch make_batch(std::span<const SampleView> documents);

}  // namespace satune
