#include "evaluation/task.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/files/error.h"

namespace satune {

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = {"response_loss", "perplexity", "exact_match"};
  return names;
}

std::unique_ptr<Task> make_task(std::string_view name, const std::filesystem::path& data,
                                const TaskOptions& options, const Tokenizer& tokenizer,
                                const PromptTemplate* prompt_template) {
  if (!task_uses_template(name)) return make_perplexity(data, options, tokenizer);
  if (name == "exact_match") return make_exact_match(data, options, tokenizer, *prompt_template);
  return make_response_loss(data, options, tokenizer, *prompt_template);
}

bool task_uses_template(std::string_view name) {
  if (name == "response_loss" || name == "exact_match") return true;
  if (name == "perplexity") return false;
  const std::string near = nearest_name(name, task_names());
  throw bad_input("--task", fmt::format("\"{}\"", name),
                  near.empty()
                      ? fmt::format("one of {}", fmt::join(task_names(), ", "))
                      : fmt::format("one of {} (did you mean {}?)", fmt::join(task_names(), ", "), near));
}

}  // namespace satune
