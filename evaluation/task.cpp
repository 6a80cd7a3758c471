#include "evaluation/task.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <numeric>

#include "data/files/error.h"
#include "evaluation/benchmark.h"

namespace satune {

std::vector<Json> run_all_items(const Task& task, Llama& model) {
  std::vector<Json> results(static_cast<size_t>(task.items()));
  std::vector<int64_t> items(results.size());
  std::iota(items.begin(), items.end(), 0);
  task.run(model, items, [&](ItemResult result) { results[result.item] = std::move(result.result); });
  return results;
}

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {"response_loss", "perplexity", "exact_match"};
    all.insert(all.end(), benchmark_names().begin(), benchmark_names().end());
    return all;
  }();
  return names;
}

std::unique_ptr<Task> make_task(std::string_view name, const std::filesystem::path& data,
                                const TaskOptions& options, const Tokenizer& tokenizer,
                                const PromptTemplate* prompt_template) {
  if (is_benchmark(name)) return make_benchmark(name, data, options, tokenizer);
  if (!task_uses_template(name)) return make_perplexity(data, options, tokenizer);
  if (name == "exact_match") return make_exact_match(data, options, tokenizer, *prompt_template);
  return make_response_loss(data, options, tokenizer, *prompt_template);
}

bool task_uses_template(std::string_view name) {
  if (name == "response_loss" || name == "exact_match") return true;
  if (name == "perplexity" || is_benchmark(name)) return false;
  const std::string near = nearest_name(name, task_names());
  throw bad_input("--task", fmt::format("\"{}\"", name),
                  near.empty()
                      ? fmt::format("one of {}", fmt::join(task_names(), ", "))
                      : fmt::format("one of {} (did you mean {}?)", fmt::join(task_names(), ", "), near));
}

}  // namespace satune
