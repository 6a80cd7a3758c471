// satune compare: results side by side, and an exit code that says whether one is worse.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "evaluation/comparison_report.h"
#include "evaluation/pareto.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/number_checks.h"
#include "trainer/commands/standard_output.h"

namespace satune {
namespace {

struct CompareOptions {
  std::vector<std::string> results, max_drop, max_rise, pareto;
  std::optional<std::string> output, html;
  ComparisonOptions comparison;
  bool json = false;
};

std::vector<Threshold> parse_thresholds(const CompareOptions& options) {
  std::vector<Threshold> thresholds;
  for (const std::string& text : options.max_drop)
    thresholds.push_back(parse_threshold(text, false, "--max-drop"));
  for (const std::string& text : options.max_rise)
    thresholds.push_back(parse_threshold(text, true, "--max-rise"));
  return thresholds;
}

void print_tables(const std::vector<Comparison>& comparisons, const ParetoFront& front) {
  for (const Comparison& comparison : comparisons) {
    fmt::print("A {}\nB {}\n", comparison.a->name, comparison.b->name);
    if (!comparison.notes.empty()) fmt::print("{}\n", notes_text(comparison));
    fmt::print("{}", table_text(comparison_table(comparison)));
    for (const Regression& regression : comparison.regressions)
      fmt::print("  {} is beyond {} {}\n", comparison.rows[regression.row].name(),
                 regression.threshold.rise ? "--max-rise" : "--max-drop", regression.threshold.text);
  }
  if (!front.sides.empty()) fmt::print("\n{}", table_text(pareto_table(front)));
}

int run_compare(const CompareOptions& options) {
  for (const auto& [file, option] :
       {std::pair{options.output, "--output"}, std::pair{options.html, "--html"}})
    if (file) require_new_file(*file, option);
  if (options.output && options.html &&
      std::filesystem::weakly_canonical(*options.output) == std::filesystem::weakly_canonical(*options.html))
    throw bad_input("--html", "the file of --output", "another one");
  const std::vector<Threshold> thresholds = parse_thresholds(options);
  std::vector<ResultSet> sides;
  for (const std::string& path : options.results)
    for (ResultSet& side : read_results(path)) sides.push_back(std::move(side));
  if (sides.size() < 2)
    throw bad_input(options.results.front(), "one set of results",
                    "another beside it, or a sweep of several plans");
  const std::vector<Comparison> comparisons =
      compare_with_first(std::move(sides), thresholds, options.comparison);
  const ParetoFront front = comparisons.size() > 1 || !options.pareto.empty()
                                ? find_pareto_front(comparisons, options.pareto)
                                : ParetoFront{};
  const Json json = comparison_json(comparisons, front);
  finish_after({[&] {
                  if (options.output) write_file_atomic(*options.output, write_json(json));
                },
                [&] {
                  if (options.html) write_file_atomic(*options.html, comparison_page(comparisons, front));
                }},
               [&] {
                 if (options.json) {
                   fmt::print("{}", write_json(json));
                 } else {
                   print_tables(comparisons, front);
                 }
               });
  const bool worse = std::any_of(comparisons.begin(), comparisons.end(),
                                 [](const Comparison& each) { return !each.regressions.empty(); });
  return worse ? kExitFailure : kExitOk;
}

}  // namespace

void add_compare_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* command = app.add_subcommand("compare", "Put results side by side; exit 1 where one is worse");
  command
      ->add_option(
          "results", options->results,
          "Reports of satune eval --output or generate --json, files of generate --prompts --output, or run "
          "folders; each is compared with the first. The plans of a sweep count as several")
      ->required();
  command
      ->add_option(
          "--max-drop", options->max_drop,
          "METRIC=NUMBER or METRIC=NUMBER% (of the first's), several times: the metric may be so much lower. "
          "METRIC alone or TASK.METRIC")
      ->allow_extra_args(false);
  command->add_option("--max-rise", options->max_rise, "The same for metrics that may not grow, as loss=0.02")
      ->allow_extra_args(false);
  command
      ->add_option("--pareto", options->pareto,
                   "Metric or measurement of the table of sides that no other beats, several times (default: "
                   "the first metric and kv_cache_bytes_per_token, which is also the other one of a single "
                   "METRIC)")
      ->allow_extra_args(false);
  command->add_option("--resamples", options->comparison.resamples, "Of the paired bootstrap (default 2000)")
      ->check(CLI::Range(int64_t{100}, int64_t{1} << 20));
  command->add_option("--seed", options->comparison.seed, "Of the paired bootstrap (default 42)")
      ->check(seed_number());
  command->add_option("--output", options->output, "Write the comparison to this new JSON file");
  command->add_option("--html", options->html, "Write it to this new HTML page");
  command->add_flag("--json", options->json, "Print JSON instead of tables");
  command->footer(
      "Exit code 0: within every threshold (or none given); 1: beyond one. Results of different data, "
      "template or\n"
      "tokenizer are refused (exit 2). Where both reports have results item by item (FILE.items.jsonl), the\n"
      "difference gets a standard error and a 95 % interval by paired bootstrap, and metrics that are right "
      "or\n"
      "wrong get McNemar's exact test. An item whose number is null is refused. Latency, speed, memory and "
      "energy\n"
      "stand below, - where nobody measured them: energy is that of rank 0's card, from a run's "
      "metrics.jsonl. "
      "Of\n"
      "answers to the same file of prompts they are means over the answers, paired prompt by prompt.\n"
      "Examples:\n"
      "  satune compare dense.json shared.json --max-drop acc=0.01 --max-rise loss=2%\n"
      "  satune compare dense-answers.jsonl shared-answers.jsonl --max-rise time_per_token_s=5%\n"
      "  satune compare sweep.json --html sweep.html --pareto acc --pareto tokens_per_s\n"
      "  satune compare runs/dense runs/sa --max-rise eval_loss=0.02");
  command->callback([options, &exit_code] { exit_code = run_compare(*options); });
}

}  // namespace satune
