// Generation at rising batch, timed: the decoder of `satune generate`, over random weights and prompts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/llama.h"

namespace satune {

struct DecodeLength {
  int64_t prompt = 64, tokens = 32;  ///< of each sequence
  int64_t max_batch = 16;
};

/// All sequences of a batch, step by step.
struct DecodeTimes {
  int64_t batch = 1;
  double prompt_seconds = 0;  ///< of one prompt, the mean
  double step_seconds = 0;    ///< median; every sequence has one token more
  int64_t cache_bytes = 0, dense_cache_bytes = 0;
  double tokens_per_second() const { return static_cast<double>(batch) / step_seconds; }
};

/// Batches 1, 2, 4 ... of each model in turns, so that a machine whose speed drifts drifts under all of them.
/// `ended_by`: why no larger batch was tried.
struct DecodeSeries {
  std::vector<std::vector<DecodeTimes>> by_model;
  std::string ended_by;
};

/// `available`: bytes for the caches of one model. `on_batch` is called before each.
DecodeSeries time_decoding(const std::vector<const Llama*>& models, const DecodeLength& length,
                           int64_t available, const std::function<void(int64_t batch)>& on_batch = {});

}  // namespace satune
