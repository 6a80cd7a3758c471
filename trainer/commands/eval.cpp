// satune eval: what a model scores on files of records or text.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>
#include <utility>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "evaluation/generation.h"
#include "evaluation/task.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/standard_output.h"
#include "trainer/device.h"

namespace satune {
namespace {

struct EvalOptions {
  ModelOptions model;
  std::vector<std::string> tasks;    ///< NAME=PATH
  std::vector<std::string> columns;  ///< PART=KEY
  std::optional<std::string> template_name, output;
  std::optional<int64_t> max_length;
  std::string batch_size = "auto";
  TaskOptions task;
  bool json = false;
};

struct NamedTask {
  std::string key;
  std::string argument;  ///< NAME=PATH
  std::unique_ptr<Task> task;
};

int64_t parse_batch_size(const std::string& text) {
  if (text == "auto") return 0;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw bad_input("--batch-size", fmt::format("\"{}\"", text), "auto or a whole number of at least 1");
  return value;
}

/// The task's key in the JSON: its name, and for a second file under the same name NAME:FILENAME.
std::string task_key(const std::string& name, const std::filesystem::path& data,
                     const std::vector<NamedTask>& tasks) {
  const auto taken = [&](const std::string& key) {
    return std::any_of(tasks.begin(), tasks.end(), [&](const NamedTask& task) { return task.key == key; });
  };
  if (!taken(name)) return name;
  const std::string longer = name + ":" + data.filename().string();
  const std::string argument = name + "=" + data.string();
  const bool repeated = std::any_of(tasks.begin(), tasks.end(),
                                    [&](const NamedTask& task) { return task.argument == argument; });
  if (repeated || taken(longer))
    throw bad_input("--task " + argument, "a task of this name and file name before it",
                    "another file name for each");
  return longer;
}

/// "NAME=VALUE" in two. `example` ends the error.
std::pair<std::string, std::string> split_pair(std::string_view option, const std::string& text,
                                               std::string_view example) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals + 1 == text.size())
    throw bad_input(option, fmt::format("\"{}\"", text), example);
  return {text.substr(0, equals), text.substr(equals + 1)};
}

std::pair<std::string, std::string> split_task(const std::string& text) {
  return split_pair("--task", text, "NAME=PATH, as in response_loss=eval.json");
}

ColumnNames parse_columns(const std::vector<std::string>& pairs) {
  ColumnNames columns;
  for (const std::string& text : pairs) {
    const auto [part, key] = split_pair("--column", text, "PART=KEY, as in instruction=question");
    std::string* name = part == "instruction" ? &columns.instruction
                        : part == "input"     ? &columns.input
                        : part == "output"    ? &columns.output
                        : part == "text"      ? &columns.text
                                              : nullptr;
    if (name == nullptr)
      throw bad_input("--column", fmt::format("\"{}\"", part), "instruction, input, output or text");
    *name = key;
  }
  return columns;
}

/// None where no task asks for one: perplexity wants neither a template nor an EOS.
std::optional<PromptTemplate> load_template(const EvalOptions& options, const ModelSource& source,
                                            const Tokenizer& tokenizer) {
  const bool used = std::any_of(options.tasks.begin(), options.tasks.end(), [](const std::string& task) {
    return task_uses_template(split_task(task).first);
  });
  if (used) return load_model_template(source, options.template_name, tokenizer);
  if (options.template_name)
    throw bad_input("--template " + *options.template_name, "only perplexity, which has no template",
                    "response_loss or exact_match beside it");
  return std::nullopt;
}

int64_t bounded_length(const EvalOptions& options, const ModelSource& source) {
  const int64_t positions = source.config.max_position_embeddings;
  if (options.max_length && *options.max_length > positions)
    throw bad_input("--max-length", fmt::format("{} tokens", *options.max_length),
                    fmt::format("at most {}, the model's max_position_embeddings", positions));
  return options.max_length.value_or(std::min(options.task.max_length, positions));
}

std::vector<NamedTask> make_tasks(const EvalOptions& options, const Tokenizer& tokenizer,
                                  const PromptTemplate* prompt_template) {
  std::vector<NamedTask> tasks;
  for (const std::string& text : options.tasks) {
    const auto [name, path] = split_task(text);
    std::string key = task_key(name, path, tasks);
    tasks.push_back({std::move(key), text, make_task(name, path, options.task, tokenizer, prompt_template)});
  }
  return tasks;
}

std::string format_value(const Json& value) {
  if (value.is_number_integer()) return fmt::format("{}", value.get<int64_t>());
  if (value.is_number()) return fmt::format("{:.6g}", value.get<double>());
  return value.is_null() ? "-" : value.dump();
}

void print_table(const Json& report) {
  fmt::print("{}\n", report["model"].get<std::string>());
  for (const auto& [name, metrics] : report["tasks"].items()) {
    fmt::print("\n  {}\n", name);
    for (const auto& [metric, value] : metrics.items())
      fmt::print("    {:<20} {:>14}\n", metric, format_value(value));
  }
  fmt::print("\n");
  for (const char* key :
       {"parameters", "kv_cache_bytes_per_token", "seconds", "tokens_per_s", "peak_memory_bytes"})
    fmt::print("  {:<22} {:>14}\n", key, format_value(report[key]));
}

Json run_tasks(const ModelSource& source, const std::vector<NamedTask>& tasks) {
  Llama model = load_model(source);
  Json results = Json::object();
  int64_t tokens = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const NamedTask& task : tasks) {
    const TaskSums sums = task.task->run(model, 0, 1);
    results[task.key] = task.task->metrics(sums);
    tokens += sums.processed_tokens;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Json report;
  report["tasks"] = std::move(results);
  report["seconds"] = seconds;
  report["tokens_per_s"] = static_cast<double>(tokens) / seconds;
  report["peak_memory_bytes"] = peak_memory_bytes(source.device);
  report["parameters"] = model.table().parameter_count();
  report["kv_cache_bytes_per_token"] =
      kv_cache_bytes_per_token(source.config, static_cast<int64_t>(at::elementSize(source.type)));
  report["precision"] = precision_name(source.type);
  report["sharing"] = source.config.sharing.layers_text();
  return report;
}

int run_eval(EvalOptions options) {
  if (options.output) require_new_file(*options.output, "--output");
  options.task.batch_size = parse_batch_size(options.batch_size);
  const ModelSource source = find_model_for(options.model);
  const std::unique_ptr<Tokenizer> tokenizer = load_model_tokenizer(source.directory, source.config);
  const std::optional<PromptTemplate> prompt_template = load_template(options, source, *tokenizer);
  options.task.columns = parse_columns(options.columns);
  options.task.max_length = bounded_length(options, source);
  options.task.max_positions = source.config.max_position_embeddings;
  if (prompt_template) {
    options.task.stop_ids =
        stop_token_ids(source.directory, source.config, *tokenizer, prompt_template->end_id(*tokenizer));
  }
  const std::vector<NamedTask> tasks =
      make_tasks(options, *tokenizer, prompt_template ? &*prompt_template : nullptr);

  Json report;
  report["model"] = options.model.request.name_or_path;
  report.update(run_tasks(source, tasks));
  if (options.json) {
    fmt::print("{}", write_json(report));
  } else {
    print_table(report);
  }
  // Last, so that a disk that is full does not take the results with it.
  finish_standard_output();
  if (options.output) write_file_atomic(*options.output, write_json(report));
  return kExitOk;
}

}  // namespace

void add_eval_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Measure a model: response_loss, perplexity, exact_match");
  const auto count = CLI::Range(int64_t{1}, int64_t{1} << 40);
  add_model_options(*command, options->model);
  command
      ->add_option(
          "--task", options->tasks,
          "NAME=PATH, several times. response_loss, exact_match: Alpaca JSON or JSONL; perplexity: .txt, "
          "or JSONL with `text`. A second file under one name is reported as NAME:FILENAME")
      ->required()
      ->allow_extra_args(false);
  command
      ->add_option("--column", options->columns,
                   "PART=KEY, several times: the key that holds instruction, input, output or text where it "
                   "is called otherwise, as `columns` of a training config")
      ->allow_extra_args(false);
  command->add_option(
      "--template", options->template_name,
      "alpaca, alpaca_stanford, llama3 or a template file (default: what the model was trained "
      "with, else alpaca)");
  command
      ->add_option(
          "--max-length", options->max_length,
          "Records longer than this many tokens are left out and counted; perplexity's window (default "
          "2048, or the model's max_position_embeddings where that is less)")
      ->check(count);
  command
      ->add_option("--max-records", options->task.max_records,
                   "Only the first N records that fit, in file order (perplexity: documents)")
      ->check(count);
  command
      ->add_option(
          "--stride", options->task.stride,
          "Step of perplexity's windows (default: --max-length; smaller gives every token more context)")
      ->check(count);
  command
      ->add_option("--max-new-tokens", options->task.max_new_tokens,
                   "Longest answer of exact_match, in tokens (default 256)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option(
      "--batch-size", options->batch_size,
      "Records or windows of a forward pass of response_loss and perplexity: auto (about 2048 "
      "tokens, the default) or N; exact_match answers one record at a time");
  command->add_option("--output", options->output, "Write the report to this new JSON file");
  command->add_flag("--json", options->json, "Print the report as JSON instead of a table");
  command->footer(
      "Report: {\"model\", \"tasks\": {NAME: {metric: value, ..., \"n\"}}, \"seconds\", \"tokens_per_s\",\n"
      "         \"peak_memory_bytes\", \"parameters\", \"kv_cache_bytes_per_token\", ...}\n"
      "  response_loss  loss per target token, loss_stderr (over records), tokens (targets), n (records)\n"
      "  perplexity     exp(loss), loss per token; every token after the first counted once, n (windows)\n"
      "  exact_match    share of greedy answers equal to the output after trimming, exact_match_stderr, n\n"
      "Examples:\n"
      "  satune eval MODEL --task response_loss=eval.json --task perplexity=wiki.txt\n"
      "  satune eval MODEL --task exact_match=held_out.json --sharing 23-26 --output shared.json");
  command->callback([options, &exit_code] { exit_code = run_eval(*options); });
}

}  // namespace satune
