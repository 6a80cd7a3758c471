#include "evaluation/generation.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <list>
#include <optional>
#include <set>
#include <utility>

#include "data/files/error.h"
#include "model/files/hf_directory.h"

namespace satune {
namespace {

using OnToken = std::function<bool(int32_t)>;

/// One text in the making.
class Continuation {
 public:
  Continuation(const GenerationOptions& options, OnToken on_token)
      : options_(options), on_token_(std::move(on_token)), sampler_(options.sampling) {}

  /// Takes the next token off the logits after the last one. Whether it has to be appended for another.
  bool next(const at::Tensor& logits_V) {
    if (full()) return false;
    const int32_t token =
        sampler_.next({logits_V.const_data_ptr<float>(), static_cast<size_t>(logits_V.numel())});
    result_.tokens.push_back(token);
    result_.stopped =
        std::find(options_.stop_ids.begin(), options_.stop_ids.end(), token) != options_.stop_ids.end();
    return !result_.stopped && (!on_token_ || on_token_(token)) && !full();
  }

  int32_t last() const { return result_.tokens.back(); }
  Generation take() { return std::move(result_); }

 private:
  bool full() const { return static_cast<int64_t>(result_.tokens.size()) >= options_.max_new_tokens; }

  const GenerationOptions& options_;
  OnToken on_token_;
  Sampler sampler_;
  Generation result_;
};

void check_fits(const Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options) {
  const int64_t needed = static_cast<int64_t>(prompt.size()) + options.max_new_tokens;
  if (needed > decoder.capacity())
    throw bad_input("generation", fmt::format("{} tokens of prompt and answer", needed),
                    fmt::format("at most {}", decoder.capacity()));
}

}  // namespace

Generation generate(Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const OnToken& on_token) {
  check_fits(decoder, prompt, options);
  Continuation text(options, on_token);
  at::Tensor logits_V = decoder.append(prompt);
  while (text.next(logits_V)) {
    const int32_t token = text.last();
    logits_V = decoder.append({&token, 1});
  }
  return text.take();
}

void generate_together(Decoder& decoder, std::span<const std::span<const int32_t>> prompts,
                       const GenerationOptions& options, const std::function<bool(size_t, int32_t)>& on_token,
                       const std::function<void(size_t, Generation)>& on_end) {
  struct Running {
    size_t prompt;
    int64_t sequence;
    Continuation text;
  };
  for (const auto& prompt : prompts) check_fits(decoder, prompt, options);
  std::list<Running> running;
  std::vector<int64_t> free;
  for (int64_t sequence = decoder.sequences() - 1; sequence >= 0; --sequence) free.push_back(sequence);
  const auto end = [&](std::list<Running>::iterator it) {
    on_end(it->prompt, it->text.take());
    free.push_back(it->sequence);
    return running.erase(it);
  };
  for (size_t next = 0; next < prompts.size() || !running.empty();) {
    while (next < prompts.size() && !free.empty()) {
      const size_t prompt = next++;
      running.push_back({prompt, free.back(), Continuation(options, [&on_token, prompt](int32_t token) {
                           return on_token(prompt, token);
                         })});
      free.pop_back();
      decoder.clear(running.back().sequence);
      if (!running.back().text.next(decoder.append(prompts[prompt], running.back().sequence)))
        end(std::prev(running.end()));
    }
    if (running.empty()) continue;
    std::vector<int32_t> tokens;
    std::vector<int64_t> sequences;
    for (const Running& one : running) {
      tokens.push_back(one.text.last());
      sequences.push_back(one.sequence);
    }
    const at::Tensor logits_MV = decoder.step(tokens, sequences);
    int64_t row = 0;
    for (auto it = running.begin(); it != running.end();)
      it = it->text.next(logits_MV[row++]) ? std::next(it) : end(it);
  }
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
