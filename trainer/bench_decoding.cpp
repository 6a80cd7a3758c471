#include "trainer/bench_decoding.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "model/decode.h"
#include "trainer/percentile.h"
#include "trainer/progress.h"
#include "trainer/synthetic_data.h"

namespace satune {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Logits come to the host at every step, so that the clock of the host is that of the card.
DecodeTimes time_batch(const Llama& model, const DecodeLength& length, int64_t batch) {
  Decoder decoder(model, length.prompt + length.tokens, batch);
  const int64_t vocabulary = model.config().vocab_size;
  uint64_t counter = 0;  // of the tokens
  DecodeTimes times;
  times.batch = batch;
  times.cache_bytes = decoder.cache_bytes();
  times.dense_cache_bytes = decoder.dense_cache_bytes();
  const auto start = Clock::now();
  for (int64_t i = 0; i < batch; ++i) decoder.append(random_tokens(length.prompt, vocabulary, counter), i);
  times.prompt_seconds = seconds_since(start) / static_cast<double>(batch);
  std::vector<int64_t> sequences(static_cast<size_t>(batch));
  std::iota(sequences.begin(), sequences.end(), 0);
  std::vector<double> seconds;
  for (int64_t step = 0; step < length.tokens; ++step) {
    const std::vector<int32_t> tokens = random_tokens(batch, vocabulary, counter);
    const auto begin = Clock::now();
    decoder.step(tokens, sequences);
    seconds.push_back(seconds_since(begin));
  }
  times.step_seconds = percentile(std::move(seconds), 0.5);
  return times;
}

}  // namespace

DecodeSeries time_decoding(const std::vector<const Llama*>& models, const DecodeLength& length,
                           int64_t available, const std::function<void(int64_t batch)>& on_batch) {
  DecodeSeries series;
  series.by_model.resize(models.size());
  series.ended_by = "--max-batch";
  int64_t per_sequence = 0;
  for (const Llama* model : models) {
    const auto element = static_cast<int64_t>(at::elementSize(model->weights().type()));
    per_sequence = std::max(
        per_sequence, kv_cache_bytes_per_token(model->config(), element) * (length.prompt + length.tokens));
  }
  for (int64_t batch = 1; batch <= length.max_batch; batch *= 2) {
    if (batch * per_sequence > available) {
      series.ended_by = fmt::format("memory: {} of cache for {} sequences, {} available",
                                    format_bytes(static_cast<double>(batch * per_sequence)), batch,
                                    format_bytes(static_cast<double>(available)));
      break;
    }
    if (on_batch) on_batch(batch);
    for (size_t i = 0; i < models.size(); ++i)
      series.by_model[i].push_back(time_batch(*models[i], length, batch));
  }
  return series;
}

}  // namespace satune
