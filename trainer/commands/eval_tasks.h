// What a command line of `satune eval` asks for: which tasks over which files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/prompt_template.h"
#include "evaluation/model_loader.h"
#include "evaluation/task.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/rank_options.h"

namespace satune {

struct EvalOptions {
  ModelOptions model;
  std::vector<std::string> tasks;       ///< NAME=PATH, or a task file
  std::vector<std::string> benchmarks;  ///< values of --tasks: names or task files, with commas between
  std::optional<std::string> data_dir;
  std::vector<std::string> columns;  ///< PART=KEY
  std::optional<std::string> template_name, output, sweep;
  std::optional<std::string> sweep_anchor;                    ///< --anchor beside --sweep
  std::optional<int64_t> max_length, stride, max_new_tokens;  ///< of `task`, where they were given
  std::string batch_size = "auto";
  TaskOptions task;
  bool json = false;
  RankOptions ranks;
};

struct NamedTask {
  std::string key;       ///< of the report
  std::string argument;  ///< as given
  std::unique_ptr<Task> task;
  std::filesystem::path data = {};  ///< "" = a task file, which names its own
  bool templated = false;           ///< puts its records through EvalTasks::prompt_template
};

/// Everything about the tasks, read and encoded; no weights.
struct EvalTasks {
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<PromptTemplate> prompt_template;  ///< none where no task asks for one
  std::vector<NamedTask> tasks;
};

/// Throws BadInput for whatever is wrong with the options or the data.
EvalTasks make_eval_tasks(EvalOptions options, const ModelSource& source);

}  // namespace satune
