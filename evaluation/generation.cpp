#include "evaluation/generation.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "data/files/error.h"
#include "model/files/hf_directory.h"

namespace satune {
namespace {

std::span<const float> values(const at::Tensor& logits_V) {
  return {logits_V.const_data_ptr<float>(), static_cast<size_t>(logits_V.numel())};
}

}  // namespace

Generation generate(Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const std::function<bool(int32_t)>& on_token) {
  const int64_t needed = static_cast<int64_t>(prompt.size()) + options.max_new_tokens;
  if (needed > decoder.capacity())
    throw bad_input("generation", fmt::format("{} tokens of prompt and answer", needed),
                    fmt::format("at most {}", decoder.capacity()));
  Sampler sampler(options.sampling);
  Generation result;
  at::Tensor logits_V = decoder.append(prompt);
  while (static_cast<int64_t>(result.tokens.size()) < options.max_new_tokens) {
    const int32_t token = sampler.next(values(logits_V));
    result.tokens.push_back(token);
    result.stopped =
        std::find(options.stop_ids.begin(), options.stop_ids.end(), token) != options.stop_ids.end();
    if (result.stopped) break;
    if (on_token && !on_token(token)) break;
    const bool more = static_cast<int64_t>(result.tokens.size()) < options.max_new_tokens;
    if (more) logits_V = decoder.append({&result.tokens.back(), 1});
  }
  return result;
}

std::vector<int64_t> eos_token_ids(const std::filesystem::path& directory, const ModelConfig& config) {
  std::vector<int64_t> ids = generation_config_eos(directory);
  return ids.empty() ? config.eos_token_ids : ids;
}

std::vector<int64_t> stop_token_ids(const std::filesystem::path& directory, const ModelConfig& config,
                                    const Tokenizer& tokenizer, std::optional<int32_t> template_end) {
  std::set<int64_t> ids(config.eos_token_ids.begin(), config.eos_token_ids.end());
  for (const int64_t id : generation_config_eos(directory)) ids.insert(id);
  if (tokenizer.eos_id()) ids.insert(*tokenizer.eos_id());
  if (template_end) ids.insert(*template_end);
  return {ids.begin(), ids.end()};
}

}  // namespace satune
