// Text from a model: prompts go in, tokens come out one by one until an end token or the limit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
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
};

struct Generation {
  std::vector<int32_t> tokens;  ///< generated ids; the stop id, where one came, is the last
  bool stopped = false;         ///< by a stop id, not by max_new_tokens

  /// The ids without the stop id.
  std::span<const int32_t> text_tokens() const {
    return std::span(tokens).first(tokens.size() - (stopped ? 1 : 0));
  }
};

/// Continues `prompt` on an empty (cleared) decoder. `on_token` sees each id that is not a stop id as it
/// comes and returns whether to go on; may be empty. Throws BadInput where prompt + max_new_tokens exceed the
/// decoder's capacity.
Generation generate(Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const std::function<bool(int32_t)>& on_token = {});

/// Continues many prompts, as many at a time as the decoder has sequences: where one ends, the next begins.
/// Each has a sampler of its own. `on_token` as in generate(), with the prompt's index; `on_end` sees each
/// result once, in the order in which they end. Forgets what the decoder held. Throws as generate(), before
/// anything is generated.
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
