// The samples a run trains or evaluates on: records chosen by the split, cut or dropped by policy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/token_cache.h"

namespace satune {

/// What happens to a sample of more than max_length tokens.
enum class Overlength {
  kDrop,
  kTruncate,  ///< keep the first max_length tokens; dropped when no target is left
  kError,     ///< BadInput that names record and length
};
/// "drop" | "truncate" | "error". Throws BadInput.
Overlength parse_overlength(std::string_view name);
std::string_view overlength_name(Overlength overlength);

struct DatasetPolicy {
  int64_t max_length = 4096;  ///< tokens; at least 2
  Overlength overlength = Overlength::kDrop;
  bool keep_empty_output = false;  ///< training drops records without an output, evaluation keeps them
  std::string_view part = {};      ///< what an error calls these records: "the eval split"; "" = the file
};

/// A record's length as the policies see it.
struct RecordLength {
  int64_t tokens = 0, prompt_tokens = 0;
  bool empty_output = false;
};

enum class RecordFate {
  kKept,            ///< whole
  kPieces,          ///< plain text, cut into pieces
  kTruncated,       ///< to max_length
  kNothingToLearn,  ///< dropped: no output, or no target
  kTooLong,         ///< dropped, or an error
  kNoTargetLeft,    ///< dropped: what is left after the cut has no target
};
/// What becomes of a record. Throws nothing: by Overlength::kError it is kTooLong, which the caller reports.
RecordFate record_fate(const RecordLength& length, DataFormat format, const DatasetPolicy& policy);

struct TokenRange {
  int64_t begin = 0, end = 0;
};
/// The tokens of each sample that such a record gives; none when it is dropped.
std::vector<TokenRange> sample_ranges(int64_t tokens, RecordFate fate, int64_t max_length);

/// records = samples kept + dropped (plain text: a document may give several samples).
struct DatasetSummary {
  int64_t records = 0;
  int64_t kept = 0;  ///< samples
  int64_t dropped_empty = 0;
  int64_t dropped_overlength = 0;
  int64_t truncated = 0;
  int64_t tokens = 0;
  int64_t target_tokens = 0;
  int64_t longest = 0;  ///< tokens of the longest sample kept
};

struct SampleView {
  std::span<const int32_t> tokens;
  int32_t prompt_length = 0;
  int64_t record_number = 0;  ///< 1-based, in the data file

  int64_t target_count() const {
    const auto size = static_cast<int64_t>(tokens.size());
    return std::max<int64_t>(0, size - std::max<int64_t>(prompt_length, 1));
  }
};

/// Immutable; copies share the tokens. Plain text longer than max_length is cut into pieces that overlap by
/// one token, so that every token but the document's first is a target exactly once.
class Dataset {
 public:
  /// `records`: 0-based, ascending. Throws BadInput when nothing is left, or by Overlength::kError.
  Dataset(std::shared_ptr<const TokenCache> cache, const std::vector<int64_t>& records,
          const DatasetPolicy& policy);
  /// All records of the file.
  Dataset(std::shared_ptr<const TokenCache> cache, const DatasetPolicy& policy);

  int64_t size() const { return static_cast<int64_t>(samples_.size()); }
  SampleView sample(int64_t index) const;
  const DatasetSummary& summary() const { return summary_; }
  const TokenCache& cache() const { return *cache_; }
  /// Of every sample's tokens and targets, in order: what a resume compares.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  struct Piece {
    int64_t record;
    int64_t begin;
    int32_t length;
  };
  void add_record(int64_t record, const DatasetPolicy& policy);

  std::shared_ptr<const TokenCache> cache_;
  std::vector<Piece> samples_;
  DatasetSummary summary_;
  std::string fingerprint_;
};

struct RecordSplit {
  std::vector<int64_t> train, eval;  ///< 0-based, ascending
};

/// Holds out ceil(records * val_size) records for val_size < 1, but leaves one to train on (of a single
/// record, such as a .txt file, nothing is held out); or val_size records for a whole number >= 1; 0 holds
/// out none. A function of (records, val_size, seed) only. Throws BadInput naming `val_size` when it is
/// negative, not a whole number above 1, or a number that leaves no record to train on.
RecordSplit split_records(int64_t records, double val_size, uint64_t seed);

struct DataOptions {
  std::filesystem::path train_file;
  std::filesystem::path eval_file;  ///< empty = split by val_size
  double val_size = 0.0;
  uint64_t seed = 42;
  DatasetPolicy policy;  ///< keep_empty_output applies to neither: train drops, eval keeps
  TokenCacheOptions cache;
};

struct TrainingData {
  Dataset train;
  std::optional<Dataset> eval;
};

/// Tokens, split and policy in one call. Throws BadInput; eval_file together with val_size > 0 is one.
TrainingData load_training_data(const DataOptions& options, const Tokenizer& tokenizer,
                                const PromptTemplate& prompt_template);

}  // namespace satune
