#include "trainer/commands/eval_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "data/files/error.h"
#include "evaluation/benchmark.h"
#include "evaluation/generation.h"
#include "evaluation/task_file.h"
#include "trainer/commands/column_options.h"

namespace satune {
namespace {

int64_t parse_batch_size(const std::string& text) {
  if (text == "auto") return 0;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw bad_input("--batch-size", fmt::format("\"{}\"", text), "auto or a whole number of at least 1");
  return value;
}

/// "NAME=VALUE" in two. `example` ends the error.
std::pair<std::string, std::string> split_pair(std::string_view option, const std::string& text,
                                               std::string_view example) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals + 1 == text.size())
    throw bad_input(option, fmt::format("\"{}\"", text), example);
  return {text.substr(0, equals), text.substr(equals + 1)};
}

/// A task to make: a name with its data, or a task file.
struct TaskRequest {
  std::string argument, name;
  std::filesystem::path data;  ///< "" = a task file
};

bool is_task_file(const std::string& text) {
  return text.ends_with(".json") && text.find('=') == std::string::npos;
}

/// Of the values of --tasks. (CLI11's own delimiter would go on to the next argument after a lone comma.)
std::vector<std::string> listed_names(const std::vector<std::string>& values) {
  std::vector<std::string> names;
  for (const std::string& value : values)
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      if (end == begin)
        throw bad_input(fmt::format("--tasks \"{}\"", value), "an empty name", "NAME,NAME,...");
      names.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  return names;
}

/// Names of --tasks; `glue` stands for its nine.
std::vector<std::string> expand(const std::vector<std::string>& names) {
  std::vector<std::string> all;
  for (const std::string& name : names) {
    if (name != "glue") {
      all.push_back(name);
      continue;
    }
    for (const std::string& benchmark : benchmark_names())
      if (benchmark.starts_with("glue_")) all.push_back(benchmark);
  }
  return all;
}

std::vector<TaskRequest> requests_of(const EvalOptions& options) {
  std::vector<TaskRequest> requests;
  for (const std::string& text : options.tasks) {
    if (is_task_file(text)) {
      requests.push_back({text, std::filesystem::path(text).stem().string(), {}});
    } else {
      const auto [name, path] = split_pair("--task", text, "NAME=PATH, as in response_loss=eval.json");
      task_uses_template(name);  // refuses an unknown name
      requests.push_back({text, name, path});
    }
  }
  for (const std::string& name : expand(options.benchmarks)) {
    if (is_task_file(name)) {
      requests.push_back({name, std::filesystem::path(name).stem().string(), {}});
      continue;
    }
    task_uses_template(name);  // refuses an unknown name
    if (!is_benchmark(name))
      throw bad_input("--tasks " + name, "a task without a file of its own name", "--task " + name + "=PATH");
    if (!options.data_dir) throw bad_input("--tasks " + name, "no --data-dir", "--data-dir FOLDER beside it");
    const std::filesystem::path data = find_benchmark_data(name, *options.data_dir);
    requests.push_back({name + "=" + data.string(), name, data});
  }
  if (requests.empty()) throw bad_input("satune eval", "no task", "--task NAME=PATH or --tasks NAME,...");
  return requests;
}

/// Throws BadInput for an option that none of the tasks reads. Names are known and columns parsed by now.
void refuse_unused(const EvalOptions& options, const std::vector<TaskRequest>& requests) {
  const auto any = [&](const auto& fits) { return std::any_of(requests.begin(), requests.end(), fits); };
  const auto has = [&](std::string_view name) {
    return any([&](const TaskRequest& request) { return !request.data.empty() && request.name == name; });
  };
  const auto refuse = [](bool used, const auto& value, std::string_view option, std::string_view found,
                         std::string_view expected) {
    if (value && !used) throw bad_input(fmt::format("{} {}", option, *value), found, expected);
  };
  const auto asks = [](const TaskRequest& request) {
    return request.data.empty() || is_benchmark(request.name);
  };
  const bool questions = any(asks), texts = has("perplexity"), answers = has("exact_match"),
             records = answers || has("response_loss");
  const bool shots = any([&](const TaskRequest& request) {
    return request.data.empty() || (is_benchmark(request.name) && request.name != "wikitext");
  });
  constexpr std::string_view kNoQuestions = "no benchmark and no task file beside it",
                             kQuestions = "one of them (--max-records is for the other tasks)",
                             kOnlyQuestions = "only benchmarks or task files, which do not read it",
                             kRecords = "response_loss, exact_match or perplexity beside it";
  refuse(questions, options.task.limit, "--limit", kNoQuestions, kQuestions);
  refuse(questions, options.task.num_fewshot, "--num-fewshot", kNoQuestions, kQuestions);
  refuse(shots, options.task.num_fewshot, "--num-fewshot", "only wikitext, which has no questions",
         "another benchmark or a task file beside it");
  refuse(texts, options.stride, "--stride", "no perplexity beside it", "--task perplexity=PATH");
  refuse(answers, options.max_new_tokens, "--max-new-tokens", "no exact_match beside it",
         "--task exact_match=PATH (a task file has its own max_new_tokens)");
  refuse(records || texts, options.task.max_records, "--max-records", kOnlyQuestions,
         fmt::format("{} (--limit is for these)", kRecords));
  refuse(records || texts, options.max_length, "--max-length", kOnlyQuestions, kRecords);
  for (const std::string& column : options.columns)
    refuse(column.starts_with("text=") ? texts : records, std::optional(column), "--column",
           "no task beside it that reads this part",
           "perplexity for text, response_loss or exact_match for the others");
  refuse(!std::all_of(options.benchmarks.begin(), options.benchmarks.end(), is_task_file), options.data_dir,
         "--data-dir", "no benchmark that is looked for there", "--tasks NAME,... beside it");
}

/// The task's key in the JSON: its name, and for a second file under the same name NAME:FILENAME.
std::string task_key(const TaskRequest& request, const std::vector<NamedTask>& tasks) {
  const std::string& name = request.name;
  const auto taken = [&](const std::string& key) {
    return std::any_of(tasks.begin(), tasks.end(), [&](const NamedTask& task) { return task.key == key; });
  };
  if (!taken(name)) return name;
  const std::string longer = name + ":" + request.data.filename().string();
  const std::string& argument = request.argument;
  const bool repeated = std::any_of(tasks.begin(), tasks.end(),
                                    [&](const NamedTask& task) { return task.argument == argument; });
  if (repeated || taken(longer) || request.data.empty())
    throw bad_input("--task " + argument, "a task of this name and file name before it",
                    "another file name for each");
  return longer;
}

/// None where no task asks for one: perplexity wants neither a template nor an EOS.
std::optional<PromptTemplate> load_template(const EvalOptions& options,
                                            const std::vector<TaskRequest>& requests,
                                            const ModelSource& source, const Tokenizer& tokenizer) {
  const bool used = std::any_of(requests.begin(), requests.end(), [](const TaskRequest& request) {
    return !request.data.empty() && task_uses_template(request.name);
  });
  if (used) return load_model_template(source, options.template_name, tokenizer);
  if (options.template_name)
    throw bad_input("--template " + *options.template_name, "only perplexity or benchmarks, which have none",
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

/// The default is bounded by what positions are left; a number that was asked for is not cut in silence.
int64_t answer_length(const EvalOptions& options, const ModelSource& source) {
  const int64_t positions = source.config.max_position_embeddings;
  if (options.max_new_tokens && *options.max_new_tokens >= positions)
    throw bad_input("--max-new-tokens", fmt::format("{}", *options.max_new_tokens),
                    fmt::format("fewer than {}, the model's max_position_embeddings", positions));
  return options.max_new_tokens.value_or(options.task.max_new_tokens);
}

}  // namespace

EvalTasks make_eval_tasks(EvalOptions options, const ModelSource& source) {
  options.benchmarks = listed_names(options.benchmarks);
  const std::vector<TaskRequest> requests = requests_of(options);
  options.task.columns = parse_columns("--column", options.columns);
  refuse_unused(options, requests);
  EvalTasks result;
  result.tokenizer = load_model_tokenizer(source.directory, source.config);
  result.prompt_template = load_template(options, requests, source, *result.tokenizer);
  options.task.batch_size = parse_batch_size(options.batch_size);
  options.task.max_length = bounded_length(options, source);
  options.task.stride = options.stride.value_or(options.task.stride);
  options.task.max_new_tokens = answer_length(options, source);
  options.task.max_positions = source.config.max_position_embeddings;
  std::optional<int32_t> template_end;
  if (result.prompt_template) template_end = result.prompt_template->end_id(*result.tokenizer);
  const auto stop_ids = [&](std::optional<int32_t> end) {
    return stop_token_ids(source.directory, source.config, *result.tokenizer, end);
  };
  for (const TaskRequest& request : requests) {
    std::string key = task_key(request, result.tasks);
    const PromptTemplate* prompt_template = result.prompt_template ? &*result.prompt_template : nullptr;
    if (request.data.empty()) {
      options.task.stop_ids = stop_ids(std::nullopt);
      result.tasks.push_back({std::move(key), request.argument,
                              make_task_from_file(request.argument, options.task, *result.tokenizer)});
    } else {
      options.task.stop_ids = stop_ids(is_benchmark(request.name) ? std::nullopt : template_end);
      result.tasks.push_back(
          {std::move(key), request.argument,
           make_task(request.name, request.data, options.task, *result.tokenizer, prompt_template),
           request.data, task_uses_template(request.name)});
    }
  }
  return result;
}

}  // namespace satune
