#include "evaluation/generation.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
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

using Clock = std::chrono::steady_clock;

int64_t longest_answer(std::span<const int32_t> prompt, const GenerationOptions& options) {
  const auto length = static_cast<int64_t>(prompt.size());
  return options.max_length ? std::min(options.max_new_tokens, *options.max_length - length)
                            : options.max_new_tokens;
}

/// One text in the making.
class Continuation {
 public:
  Continuation(std::span<const int32_t> prompt, uint64_t index, const GenerationOptions& options,
               OnToken on_token)
      : options_(options),
        limit_(longest_answer(prompt, options)),
        on_token_(std::move(on_token)),
        sampler_(options.sampling, options.first_index + index, prompt) {}

  /// Takes the next token off the logits after the last one. Whether it has to be appended for another.
  bool next(std::span<const float> logits) {
    if (full()) return false;
    const int32_t token = sampler_.next(logits);
    result_.tokens.push_back(token);
    result_.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    if (result_.tokens.size() == 1) result_.first_token_seconds = result_.seconds;
    result_.stopped =
        std::find(options_.stop_ids.begin(), options_.stop_ids.end(), token) != options_.stop_ids.end();
    if (result_.stopped) return false;
    result_.cut = on_token_ && !on_token_(token);
    return !result_.cut && !full();
  }

  int32_t last() const { return result_.tokens.back(); }
  Generation take() { return std::move(result_); }

 private:
  bool full() const { return static_cast<int64_t>(result_.tokens.size()) >= limit_; }

  const GenerationOptions& options_;
  int64_t limit_;
  OnToken on_token_;
  Sampler sampler_;
  Clock::time_point start_ = Clock::now();
  Generation result_;
};

void check_fits(const Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options) {
  const int64_t answer = longest_answer(prompt, options),
                needed = static_cast<int64_t>(prompt.size()) + answer;
  if (answer < 1)
    throw bad_input("generation", fmt::format("a prompt of {} tokens", prompt.size()),
                    fmt::format("room for an answer within {}", *options.max_length));
  if (needed > decoder.capacity())
    throw bad_input("generation", fmt::format("{} tokens of prompt and answer", needed),
                    fmt::format("at most {}", decoder.capacity()));
}

std::span<const float> row_of(const at::Tensor& logits_MV, size_t row) {
  const auto width = static_cast<size_t>(logits_MV.size(-1));
  return {logits_MV.const_data_ptr<float>() + row * width, width};
}

}  // namespace

Generation generate(Decoder& decoder, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const OnToken& on_token) {
  check_fits(decoder, prompt, options);
  Continuation text(prompt, 0, options, on_token);
  at::Tensor logits_V = decoder.append(prompt.subspan(static_cast<size_t>(decoder.length())));
  while (text.next(row_of(logits_V, 0))) {
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
      Continuation text(prompts[prompt], prompt, options,
                        [&on_token, prompt](int32_t token) { return on_token(prompt, token); });
      running.push_back({prompt, free.back(), std::move(text)});
      free.pop_back();
      decoder.clear(running.back().sequence);
      const at::Tensor logits_V = decoder.append(prompts[prompt], running.back().sequence);
      if (!running.back().text.next(row_of(logits_V, 0))) end(std::prev(running.end()));
    }
    if (running.empty()) continue;
    std::vector<int32_t> tokens;
    std::vector<int64_t> sequences;
    for (const Running& one : running) {
      tokens.push_back(one.text.last());
      sequences.push_back(one.sequence);
    }
    const at::Tensor logits_MV = decoder.step(tokens, sequences);
    size_t row = 0;
    for (auto it = running.begin(); it != running.end();)
      it = it->text.next(row_of(logits_MV, row++)) ? std::next(it) : end(it);
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
