#include "data/dataset.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "data/files/error.h"
#include "data/fingerprint.h"
#include "data/random.h"

namespace satune {
namespace {

std::vector<int64_t> all_records(const TokenCache& cache) {
  std::vector<int64_t> records(static_cast<size_t>(cache.records()));
  std::iota(records.begin(), records.end(), int64_t{0});
  return records;
}

}  // namespace

Overlength parse_overlength(std::string_view name) {
  if (name == "drop") return Overlength::kDrop;
  if (name == "truncate") return Overlength::kTruncate;
  if (name == "error") return Overlength::kError;
  throw bad_input("overlength", fmt::format("\"{}\"", name), "\"drop\", \"truncate\" or \"error\"");
}

std::string_view overlength_name(Overlength overlength) {
  switch (overlength) {
    case Overlength::kDrop:
      return "drop";
    case Overlength::kTruncate:
      return "truncate";
    case Overlength::kError:
      break;
  }
  return "error";
}

RecordFate record_fate(const RecordLength& length, DataFormat format, const DatasetPolicy& policy) {
  const bool has_target = length.tokens > std::max<int64_t>(length.prompt_tokens, 1);
  if (!has_target || (length.empty_output && !policy.keep_empty_output)) return RecordFate::kNothingToLearn;
  if (length.tokens <= policy.max_length) return RecordFate::kKept;
  if (format == DataFormat::kText) return RecordFate::kPieces;
  if (policy.overlength != Overlength::kTruncate) return RecordFate::kTooLong;
  return length.prompt_tokens >= policy.max_length ? RecordFate::kNoTargetLeft : RecordFate::kTruncated;
}

std::vector<TokenRange> sample_ranges(int64_t tokens, RecordFate fate, int64_t max_length) {
  if (fate == RecordFate::kKept) return {{0, tokens}};
  if (fate == RecordFate::kTruncated) return {{0, max_length}};
  std::vector<TokenRange> pieces;
  if (fate != RecordFate::kPieces) return pieces;
  for (int64_t begin = 0; begin + 1 < tokens; begin += max_length - 1)
    pieces.push_back({begin, std::min(begin + max_length, tokens)});
  return pieces;
}

Dataset::Dataset(std::shared_ptr<const TokenCache> cache, const std::vector<int64_t>& records,
                 const DatasetPolicy& policy)
    : cache_(std::move(cache)) {
  if (policy.max_length < 2 || policy.max_length > INT32_MAX) {
    throw bad_input("max_length", std::to_string(policy.max_length), "at least 2 tokens");
  }
  for (const int64_t record : records) add_record(record, policy);
  if (samples_.empty()) {
    throw bad_input(
        cache_->data_file().string(),
        fmt::format("no sample{}{}: of {} records {} without output, {} longer than max_length {}",
                    policy.part.empty() ? "" : " in ", policy.part, summary_.records, summary_.dropped_empty,
                    summary_.dropped_overlength, policy.max_length),
        "at least one");
  }
  Sha256 hash;
  for (int64_t i = 0; i < size(); ++i) {
    const SampleView view = sample(i);
    hash.update_field(view.tokens.size());
    hash.update_field(static_cast<uint64_t>(view.prompt_length));
    hash.update(std::as_bytes(view.tokens));
    summary_.tokens += static_cast<int64_t>(view.tokens.size());
    summary_.target_tokens += view.target_count();
    summary_.longest = std::max(summary_.longest, static_cast<int64_t>(view.tokens.size()));
  }
  summary_.kept = size();
  fingerprint_ = hash.hex();
}

Dataset::Dataset(std::shared_ptr<const TokenCache> cache, const DatasetPolicy& policy)
    : Dataset(cache, all_records(*cache), policy) {}

void Dataset::add_record(int64_t record, const DatasetPolicy& policy) {
  ++summary_.records;
  const auto tokens = static_cast<int64_t>(cache_->tokens(record).size());
  const RecordFate fate = record_fate({tokens, cache_->prompt_length(record), cache_->empty_output(record)},
                                      cache_->format(), policy);
  if (fate == RecordFate::kTooLong && policy.overlength == Overlength::kError) {
    throw bad_input(fmt::format("{} record {}", cache_->data_file().string(), record + 1),
                    fmt::format("{} tokens", tokens),
                    fmt::format("at most {} (max_length; overlength is \"error\")", policy.max_length));
  }
  summary_.dropped_empty += fate == RecordFate::kNothingToLearn;
  summary_.dropped_overlength += fate == RecordFate::kTooLong || fate == RecordFate::kNoTargetLeft;
  summary_.truncated += fate == RecordFate::kTruncated;
  for (const TokenRange& range : sample_ranges(tokens, fate, policy.max_length)) {
    samples_.push_back({record, range.begin, static_cast<int32_t>(range.end - range.begin)});
  }
}

SampleView Dataset::sample(int64_t index) const {
  const Piece& piece = samples_[static_cast<size_t>(index)];
  const auto tokens = cache_->tokens(piece.record)
                          .subspan(static_cast<size_t>(piece.begin), static_cast<size_t>(piece.length));
  return {tokens, cache_->prompt_length(piece.record), piece.record + 1};
}

RecordSplit split_records(int64_t records, double val_size, uint64_t seed) {
  const bool is_count = val_size >= 1.0;
  if (!(val_size >= 0.0) || !std::isfinite(val_size) || (is_count && val_size != std::floor(val_size))) {
    throw bad_input("val_size", fmt::format("{}", val_size),
                    "a fraction below 1 or a whole number of records");
  }
  const auto all = static_cast<double>(records);
  const double held_out = is_count ? val_size : std::min(std::ceil(all * val_size), std::max(all - 1, 0.0));
  if (held_out >= all && records > 0) {
    throw bad_input("val_size",
                    fmt::format("{}, which holds out {:.0f} of {} records", val_size, held_out, records),
                    "a size that leaves records to train on (or an eval_file)");
  }
  std::vector<int64_t> order(static_cast<size_t>(records));
  std::iota(order.begin(), order.end(), int64_t{0});
  RecordSplit split;
  if (held_out > 0) {
    RandomStream random(seed, "eval split");
    shuffle(std::span(order), random);
  }
  const auto cut = order.begin() + static_cast<std::ptrdiff_t>(held_out);
  split.eval.assign(order.begin(), cut);
  split.train.assign(cut, order.end());
  std::sort(split.eval.begin(), split.eval.end());
  std::sort(split.train.begin(), split.train.end());
  return split;
}

TrainingData load_training_data(const DataOptions& options, const Tokenizer& tokenizer,
                                const PromptTemplate& prompt_template) {
  if (!options.eval_file.empty() && options.val_size > 0) {
    throw bad_input("val_size",
                    fmt::format("{} beside eval_file {}", options.val_size, options.eval_file.string()),
                    "one of the two");
  }
  const auto open = [&](const std::filesystem::path& file) {
    return TokenCache::open_or_build(file, tokenizer, prompt_template, options.cache);
  };
  DatasetPolicy train_policy = options.policy, eval_policy = options.policy;
  train_policy.keep_empty_output = false;
  eval_policy.keep_empty_output = true;
  if (options.val_size > 0) {
    train_policy.part = "the training split";
    eval_policy.part = "the eval split (val_size)";
  }
  const auto cache = open(options.train_file);
  const RecordSplit split = split_records(cache->records(), options.val_size, options.seed);
  TrainingData data{Dataset(cache, split.train, train_policy), std::nullopt};
  if (!options.eval_file.empty()) data.eval.emplace(open(options.eval_file), eval_policy);
  if (!split.eval.empty()) data.eval.emplace(cache, split.eval, eval_policy);
  return data;
}

}  // namespace satune
