#include "trainer/commands/generate_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "data/files/json.h"
#include "trainer/commands/standard_output.h"

namespace satune {
namespace {

constexpr int64_t kLongestAnswer = 256;

/// "36,864 bytes"
std::string bytes_text(int64_t bytes) {
  std::string text = std::to_string(bytes);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text + " bytes";
}

/// `prompt`, when the model has something to go on from.
Prompt with_tokens(Prompt prompt) {
  if (prompt.tokens.empty())
    throw bad_input(prompt.name, "no token: the tokenizer has no BOS", "some text to start from");
  return prompt;
}

}  // namespace

GenerateModel::GenerateModel(const GenerateOptions& options)
    : source(find_model_for(options.model)),
      tokenizer(load_model_tokenizer(source.directory, source.config)) {}

GenerationOptions GenerateModel::generation(const GenerateOptions& options,
                                            const PromptTemplate* prompt_template) const {
  GenerationOptions generation = options.generation;
  std::optional<int32_t> end;
  if (prompt_template) end = prompt_template->end_id(*tokenizer);
  generation.stop_ids = stop_token_ids(source.directory, source.config, *tokenizer, end);
  generation.max_length = positions();
  generation.max_new_tokens = options.max_new_tokens.value_or(kLongestAnswer);
  return generation;
}

Prompt plain_prompt(std::string name, std::string text, const Tokenizer& tokenizer) {
  Prompt prompt{std::move(name), std::move(text), {}, {}};
  prompt.tokens = encode_raw_prompt(prompt.text, tokenizer);
  prompt.text_context = prompt.tokens;
  return with_tokens(std::move(prompt));
}

Prompt template_prompt(std::string name, const Record& record, const PromptTemplate& prompt_template,
                       const Tokenizer& tokenizer) {
  return with_tokens({std::move(name),
                      prompt_template.prompt_text(record),
                      prompt_template.encode_prompt(record, tokenizer),
                      {}});
}

int64_t bounded_answer(const GenerateOptions& options, const Prompt& prompt, int64_t positions) {
  const auto length = static_cast<int64_t>(prompt.tokens.size());
  if (length >= positions)
    throw bad_input(prompt.name, fmt::format("{} tokens", length),
                    fmt::format("fewer than {}, the model's max_position_embeddings", positions));
  if (options.max_new_tokens && length + *options.max_new_tokens > positions)
    throw bad_input("--max-new-tokens",
                    fmt::format("{} after {} of {} tokens", *options.max_new_tokens, prompt.name, length),
                    fmt::format("at most {} (max_position_embeddings is {})", positions - length, positions));
  return options.max_new_tokens.value_or(std::min(kLongestAnswer, positions - length));
}

std::string answer_json(const Prompt& prompt, const AnswerText& text, const Generation& generation,
                        const Decoder& decoder, bool one_line, std::optional<size_t> number) {
  Json json = Json::object();
  if (number) json["number"] = *number;
  json["prompt"] = prompt.text;
  json["text"] = text.text();
  json["tokens"] = generation.tokens;
  json["finish_reason"] = generation.stopped || text.stop() ? "stop"
                          : generation.cut                  ? "interrupted"
                                                            : "length";
  json["stop_reason"] = text.stop()          ? Json(*text.stop())
                        : generation.stopped ? Json(generation.tokens.back())
                                             : Json();
  const auto count = static_cast<double>(generation.tokens.size());
  const int64_t held = static_cast<int64_t>(prompt.tokens.size() + generation.tokens.size());
  const int64_t per_token = decoder.bytes_per_token(),
                dense = decoder.dense_cache_bytes() / (decoder.capacity() * decoder.sequences());
  json["prompt_tokens"] = prompt.tokens.size();
  json["seconds"] = generation.seconds;
  json["time_to_first_token_s"] = generation.first_token_seconds;
  json["tokens_per_s"] = count / generation.seconds;
  json["kv_cache_bytes_per_token"] = per_token;
  json["kv_cache_bytes"] = held * per_token;
  json["kv_cache_bytes_saved"] = held * (dense - per_token);
  if (!one_line) return write_json(json);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_summary(int64_t tokens, double seconds, double first_token_seconds, const Decoder& decoder) {
  const int64_t bytes = decoder.cache_bytes(), dense = decoder.dense_cache_bytes();
  const AttentionCounts& counts = decoder.attention_counts();
  std::string line = fmt::format("{} in {:.2f} s, {:.1f} tokens/s, first after {:.3f} s; KV cache {}",
                                 counted(tokens, "token"), seconds, static_cast<double>(tokens) / seconds,
                                 first_token_seconds, bytes_text(bytes));
  if (dense > bytes)
    line += fmt::format(", sharing saves {} of {} ({:.1f} %)", bytes_text(dense - bytes), bytes_text(dense),
                        100.0 * static_cast<double>(dense - bytes) / static_cast<double>(dense));
  if (counts.reused > 0)
    line += fmt::format("; attention weights of {} of {} layers' steps reused", counts.reused,
                        counts.computed + counts.reused);
  fmt::print(stderr, "{}\n", line);
}

void write_now(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  finish_standard_output();
}

}  // namespace satune
