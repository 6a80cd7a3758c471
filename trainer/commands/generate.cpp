// satune generate: text from a model. What its command line means; generate_*.cpp do it.
#include <CLI/CLI.hpp>
#include <csignal>

#include "data/files/error.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/generate_run.h"
#include "trainer/commands/number_checks.h"

namespace satune {
namespace {

/// Options of the draws, which greedy decoding does not make.
void check_draws(const CLI::App& command, const GenerateOptions& options) {
  if (options.generation.sampling.temperature != 0) return;
  for (const char* name : {"--top-k", "--top-p", "--seed"}) {
    if (command.count(name) == 0) continue;
    throw bad_input(name, "greedy decoding (temperature 0), which draws nothing",
                    "--temperature above 0 beside it");
  }
}

void check_source(const GenerateOptions& options) {
  std::vector<std::string> given;
  if (options.prompt) given.push_back("--prompt");
  if (options.instruction) given.push_back("--instruction");
  if (options.prompts) given.push_back("--prompts");
  if (options.interactive) given.push_back("--interactive");
  if (given.size() == 1) return;
  const char* wanted = "one of --prompt, --instruction, --prompts and --interactive";
  if (given.empty()) throw bad_input("generate", "none of them", wanted);
  throw bad_input("generate", given[0] + " and " + given[1], wanted);
}

/// Options that mean something beside some sources only.
void check_companions(const CLI::App& command, const GenerateOptions& options) {
  const auto only = [&](const char* name, bool allowed, const char* beside) {
    if (command.count(name) > 0 && !allowed)
      throw bad_input("generate", std::string(name) + " without " + beside, "it beside that only");
  };
  only("--input", options.instruction.has_value(), "--instruction");
  only("--template", !options.prompt, "--instruction, --prompts or --interactive");
  only("--output", options.prompts.has_value(), "--prompts");
  only("--batch-size", options.prompts.has_value(), "--prompts");
  if (options.json && options.prompts)
    throw bad_input("generate", "--json beside --prompts", "--prompts alone: its results are lines of JSON");
}

void check(const CLI::App& command, const GenerateOptions& options) {
  check_source(options);
  check_companions(command, options);
  check_draws(command, options);
  if (options.prompt) require_utf8(*options.prompt, "--prompt");
  if (options.instruction) require_utf8(*options.instruction, "--instruction");
  require_utf8(options.input, "--input");
  for (const std::string& stop : options.stop) {
    require_utf8(stop, "--stop");
    if (stop.empty()) throw bad_input("--stop", "an empty string", "text that ends an answer");
  }
  check_sampling_options(options.generation.sampling);
}

int run_generate(const GenerateOptions& options) {
  // Whoever read may have gone: that is an error to report like any other of an output.
  std::signal(SIGPIPE, SIG_IGN);
  if (options.prompts) return run_prompt_file(options);
  return options.interactive ? run_conversation(options) : run_prompt(options);
}

void add_source_options(CLI::App& command, GenerateOptions& options) {
  command.add_option("--prompt", options.prompt, "Plain text to continue; \"\" starts from BOS alone");
  command.add_option("--instruction", options.instruction, "Instruction to answer, through the template");
  command.add_option("--input", options.input, "The instruction's input");
  command.add_option(
      "--prompts", options.prompts,
      "File of prompts, answered in batches. JSON array or JSONL: Alpaca records (instruction, "
      "input; an output is not read) go through the template, {\"prompt\": TEXT} is continued as "
      "it is. Other files, and *.txt: one prompt a line, continued, or with --template answered");
  command.add_flag(
      "-i,--interactive", options.interactive,
      "A conversation: a line of standard input is a turn, and the model reads the turns before it. "
      "Ctrl-C stops an answer, Ctrl-C again or Ctrl-D ends; the line /clear forgets");
  command.add_option(
      "--template", options.template_name,
      "alpaca, alpaca_stanford, llama3 or a template file (default: what the model was trained "
      "with, else alpaca)");
}

void add_answer_options(CLI::App& command, GenerateOptions& options) {
  command
      .add_option("--max-new-tokens", options.max_new_tokens,
                  "Longest answer, in tokens (default 256, or what the model's positions leave)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command
      .add_option("--stop", options.stop,
                  "Text that ends an answer and is not printed; several times for several")
      ->allow_extra_args(false);
  SamplingOptions& sampling = options.generation.sampling;
  command.add_option("--temperature", sampling.temperature, "0 = greedy (default); above, tokens are drawn");
  command.add_option("--top-k", sampling.top_k, "Draw from the K most probable tokens (default 0 = all)");
  command.add_option("--top-p", sampling.top_p,
                     "Draw from the smallest set of tokens with this much probability (default 1)");
  command.add_option(
      "--repetition-penalty", sampling.repetition_penalty,
      "Divides the logits of tokens that stand in the prompt or the answer, as in transformers "
      "(multiplies negative ones; from 0.001 to 1000, default 1 = none)");
  command
      .add_option("--seed", sampling.seed,
                  "Seed of the draws (default 42). A prompt's answer depends on it and on the prompt's "
                  "place in the file, not on --batch-size")
      ->check(seed_number());
}

void add_output_options(CLI::App& command, GenerateOptions& options) {
  command
      .add_option("--batch-size", options.batch_size,
                  "Prompts of --prompts that are answered at a time (default 8)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16));
  command.add_option("--output", options.output,
                     "New file for the results of --prompts (default: standard output): JSONL, one line a "
                     "prompt in the file's order, with `number`, the record's or line's");
  command.add_flag("--json", options.json,
                   "One JSON object an answer instead of streaming: prompt, text, tokens (the end token "
                   "included), finish_reason (stop, length, interrupted), stop_reason (the token or string), "
                   "prompt_tokens, seconds, time_to_first_token_s, tokens_per_s, kv_cache_bytes_per_token, "
                   "kv_cache_bytes of prompt and answer, and kv_cache_bytes_saved by sharing");
}

}  // namespace

void add_generate_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate", "Answer an instruction or continue a text, streaming; a file of prompts; a conversation");
  add_model_options(*command, options->model);
  add_source_options(*command, *options);
  add_answer_options(*command, *options);
  add_output_options(*command, *options);
  command->footer(
      "Examples:\n"
      "  satune generate runs/sa/export --instruction \"Name three colours.\"\n"
      "  satune generate MODEL --prompt \"Once upon a time\" --max-new-tokens 64 --stop \"The end\"\n"
      "  satune generate MODEL --prompt \"\" --temperature 0.8 --top-p 0.9 --seed 7\n"
      "  satune generate runs/sa/export --prompts questions.jsonl --output answers.jsonl --batch-size 16\n"
      "  satune generate runs/sa/export --interactive\n"
      "  satune generate meta-llama/Meta-Llama-3-8B --sharing 23-26 --prompt \"The capital of France is\"");
  command->callback([options, command, &exit_code] {
    check(*command, *options);
    exit_code = run_generate(*options);
  });
}

}  // namespace satune
