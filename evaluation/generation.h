// Text from a model: prompts go in, tokens come out one by one until an end token or the limit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "data/tokenizer.h"
#include "evaluation/sampler.h"
#include "model/decode.h"

namespace satune {

struct GenerationOptions {
  int64_t max_new_tokens = 256;
  SamplingOptions sampling = {};
  std::vector<int64_t> stop_ids = {};  ///< any of them ends the text
  /// Prompt and answer together end here, too.
  std::optional<int64_t> max_length = std::nullopt;
  uint64_t first_index = 0;  ///< the (first) prompt's, by which draws are keyed beside the seed
};

struct Generation {
  std::vector<int32_t> tokens;                  ///< generated ids; the stop id, where one came, is the last
  bool stopped = false;                         ///< by a stop id, not by max_new_tokens
  bool cut = false;                             ///< by the listener
  double first_token_seconds = 0, seconds = 0;  ///< since the prompt's turn came

  /// The ids without the stop id.
  std::span<const int32_t> text_tokens() const {
    return std::span(tokens).first(tokens.size() - (stopped ? 1 : 0));
  }
};

/// Continues `prompt`. What the decoder holds already must be its beginning, and not all of it. `on_token`
/// sees each id that is not a stop id as it comes and returns whether to go on; may be empty. Throws BadInput
/// where the prompt and the longest answer exceed the decoder's capacity, or max_length leaves no answer.
Generation generate(Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const std::function<bool(int32_t)>& on_token = {});

/// Continues many prompts, as many at a time as the decoder has sequences: where one ends, the next begins.
/// Prompt i draws under the index first_index + i, and its tokens are those that it has alone. `on_token` as
/// in generate(), with the prompt's index; `on_end` sees each result once, in the order in which they end.
/// Forgets what the decoder held. Throws as generate(), before anything is generated.
void generate_together(Decoder& decoder, std::span<const std::span<const int32_t>> prompts,
                       const GenerationOptions& options, const std::function<bool(size_t, int32_t)>& on_token,
                       const std::function<void(size_t, Generation)>& on_end);

/// eos ids of generation_config.json, or of `config` where that file has none.
std::vector<int64_t> eos_token_ids(const std::filesystem::path& directory, const ModelConfig& config);

/// What ends a text of this model: the eos ids of config.json and of generation_config.json, the tokenizer's
/// EOS, and `template_end` (the end token that a template trained), ascending.
std::vector<int64_t> stop_token_ids(const std::filesystem::path& directory, const ModelConfig& config,
                                    const Tokenizer& tokenizer, std::optional<int32_t> template_end);

}  // namespace satune
