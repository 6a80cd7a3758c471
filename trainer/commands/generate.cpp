// satune generate: text from a model, streamed.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "data/files/error.h"
#include "data/files/json.h"
#include "evaluation/generation.h"
#include "evaluation/text_stream.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"

namespace satune {
namespace {

constexpr int64_t kLongestAnswer = 256;

struct GenerateOptions {
  ModelOptions model;
  std::optional<int64_t> max_new_tokens;
  std::optional<std::string> prompt, instruction, template_name;
  std::string input;
  GenerationOptions generation;
  bool json = false;
};

/// What goes into the model, and how its answer becomes text.
struct Prompt {
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<int32_t> text_context;  ///< a plain prompt is continued; a response stands by itself
  std::optional<int32_t> template_end;
};

/// Options of the draws, which greedy decoding does not make.
void check_draws(const CLI::App& command, const GenerateOptions& options) {
  if (options.generation.sampling.temperature != 0) return;
  for (const char* name : {"--top-k", "--top-p", "--seed"}) {
    if (command.count(name) == 0) continue;
    throw bad_input(name, "greedy decoding (temperature 0), which draws nothing",
                    "--temperature above 0 beside it");
  }
}

void check(const GenerateOptions& options) {
  if (options.prompt.has_value() == options.instruction.has_value())
    throw bad_input("generate",
                    options.prompt ? "--prompt and --instruction" : "neither --prompt nor --instruction",
                    "one of the two");
  if (options.prompt && (!options.input.empty() || options.template_name))
    throw bad_input("generate",
                    options.input.empty() ? "--template beside --prompt" : "--input beside --prompt",
                    "it beside --instruction only");
  if (options.prompt) require_utf8(*options.prompt, "--prompt");
  if (options.instruction) require_utf8(*options.instruction, "--instruction");
  require_utf8(options.input, "--input");
  check_sampling_options(options.generation.sampling);
}

Prompt make_prompt(const GenerateOptions& options, const ModelSource& source, const Tokenizer& tokenizer) {
  Prompt prompt;
  if (options.prompt) {
    prompt.text = *options.prompt;
    prompt.tokens = encode_raw_prompt(prompt.text, tokenizer);
    prompt.text_context = prompt.tokens;
    if (prompt.tokens.empty())
      throw bad_input("--prompt", "no token: the tokenizer has no BOS", "some text to start from");
    return prompt;
  }
  const PromptTemplate prompt_template = load_model_template(source, options.template_name, tokenizer);
  const Record record{*options.instruction, options.input, "", 0};
  prompt.text = prompt_template.prompt_text(record);
  prompt.tokens = prompt_template.encode_prompt(record, tokenizer);
  prompt.template_end = prompt_template.end_id(tokenizer);
  return prompt;
}

/// Tokens of the answer: what was asked for, which must fit in the model's positions, or what is left of
/// them.
int64_t bounded_answer(const GenerateOptions& options, const Prompt& prompt, const ModelSource& source) {
  const int64_t positions = source.config.max_position_embeddings;
  const auto length = static_cast<int64_t>(prompt.tokens.size());
  if (length >= positions)
    throw bad_input("the prompt", fmt::format("{} tokens", length),
                    fmt::format("fewer than {}, the model's max_position_embeddings", positions));
  if (options.max_new_tokens && length + *options.max_new_tokens > positions)
    throw bad_input("--max-new-tokens",
                    fmt::format("{} after a prompt of {} tokens", *options.max_new_tokens, length),
                    fmt::format("at most {} (max_position_embeddings is {})", positions - length, positions));
  return options.max_new_tokens.value_or(std::min(kLongestAnswer, positions - length));
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int run_generate(GenerateOptions options) {
  check(options);
  const ModelSource source = find_model_for(options.model);
  const std::unique_ptr<Tokenizer> tokenizer = load_model_tokenizer(source.directory, source.config);
  const Prompt prompt = make_prompt(options, source, *tokenizer);
  options.generation.max_new_tokens = bounded_answer(options, prompt, source);
  options.generation.stop_ids =
      stop_token_ids(source.directory, source.config, *tokenizer, prompt.template_end);
  const Llama model = load_model(source);

  TextStream stream(*tokenizer, prompt.text_context, [&](std::string_view piece) {
    if (options.json) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  });
  const auto start = std::chrono::steady_clock::now();
  Decoder decoder(model, static_cast<int64_t>(prompt.tokens.size()) + options.generation.max_new_tokens);
  const Generation result = generate(decoder, prompt.tokens, options.generation, [&](int32_t token) {
    stream.append(token);
    return true;
  });
  stream.finish();
  const double seconds = seconds_since(start);
  const double tokens_per_s = static_cast<double>(result.tokens.size()) / seconds;
  if (!options.json) {
    fmt::print("\n");
    std::fflush(stdout);
    fmt::print(stderr, "{} tokens in {:.2f} s, {:.1f} tokens/s, {} bytes of KV cache per token\n",
               result.tokens.size(), seconds, tokens_per_s, decoder.bytes_per_token());
    return kExitOk;
  }
  const Json json = {{"prompt", prompt.text},        {"text", stream.text()},
                     {"tokens", result.tokens},      {"seconds", seconds},
                     {"tokens_per_s", tokens_per_s}, {"kv_cache_bytes_per_token", decoder.bytes_per_token()}};
  fmt::print("{}", write_json(json));
  return kExitOk;
}

}  // namespace

void add_generate_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Answer an instruction or continue a text, streaming");
  add_model_options(*command, options->model);
  command->add_option("--prompt", options->prompt, "Plain text to continue; \"\" starts from BOS alone");
  command->add_option("--instruction", options->instruction, "Instruction to answer, through the template");
  command->add_option("--input", options->input, "The instruction's input");
  command->add_option(
      "--template", options->template_name,
      "alpaca, alpaca_stanford, llama3 or a template file (default: what the model was trained "
      "with, else alpaca)");
  command
      ->add_option("--max-new-tokens", options->max_new_tokens,
                   "Longest answer, in tokens (default 256, or what the model's positions leave)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  SamplingOptions& sampling = options->generation.sampling;
  command->add_option("--temperature", sampling.temperature, "0 = greedy (default); above, tokens are drawn");
  command->add_option("--top-k", sampling.top_k, "Draw from the K most probable tokens (default 0 = all)");
  command->add_option("--top-p", sampling.top_p,
                      "Draw from the smallest set of tokens with this much probability (default 1)");
  command->add_option("--seed", sampling.seed, "Seed of the draws (default 42)");
  command->add_flag("--json", options->json,
                    "One JSON object instead of streaming: prompt, text, tokens (the end token included), "
                    "seconds, tokens_per_s, kv_cache_bytes_per_token");
  command->footer(
      "Examples:\n"
      "  satune generate runs/sa/export --instruction \"Name three colours.\"\n"
      "  satune generate MODEL --prompt \"Once upon a time\" --max-new-tokens 64\n"
      "  satune generate MODEL --prompt \"\" --temperature 0.8 --top-p 0.9 --seed 7\n"
      "  satune generate meta-llama/Meta-Llama-3-8B --sharing 23-26 --prompt \"The capital of France is\"");
  command->callback([options, command, &exit_code] {
    check_draws(*command, *options);
    exit_code = run_generate(*options);
  });
}

}  // namespace satune
