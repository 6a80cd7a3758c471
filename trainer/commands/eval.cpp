// satune eval: what a model scores on files of records or text, and on public benchmarks.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/eval_run.h"
#include "trainer/commands/eval_tasks.h"
#include "trainer/commands/standard_output.h"
#include "trainer/device.h"
#include "trainer/settings.h"
#include "trainer/signals.h"

namespace satune {
namespace {

std::string format_value(const Json& value) {
  if (value.is_number_integer()) return fmt::format("{}", value.get<int64_t>());
  if (value.is_number()) return fmt::format("{:.6g}", value.get<double>());
  return value.is_null() ? "-" : value.dump();
}

/// Metrics of a task, and below them those of its parts (MMLU's categories and subjects).
void print_metrics(const Json& metrics, const std::string& indent) {
  for (const auto& [metric, value] : metrics.items()) {
    if (!value.is_structured())  // which subjects are missing stands in the log
      fmt::print("{}{:<{}} {:>14}\n", indent, metric, 24 - indent.size(), format_value(value));
  }
  for (const auto& [part, values] : metrics.items()) {
    if (!values.is_object()) continue;
    fmt::print("{}{}\n", indent, part);
    for (const auto& [name, row] : values.items())
      fmt::print("{}  {:<38} {:>8.4f} +- {:>6} {:>7}\n", indent, name, row["acc"].get<double>(),
                 row.contains("acc_stderr") ? fmt::format("{:.4f}", row["acc_stderr"].get<double>()) : "-",
                 row["n"].get<int64_t>());
  }
}

void print_table(const Json& report) {
  fmt::print("{}\n", report["model"].get<std::string>());
  for (const auto& [name, metrics] : report["tasks"].items()) {
    fmt::print("\n  {}\n", name);
    print_metrics(metrics, "    ");
  }
  fmt::print("\n");
  for (const char* key :
       {"parameters", "kv_cache_bytes_per_token", "seconds", "tokens_per_s", "peak_memory_bytes"})
    fmt::print("  {:<22} {:>14}\n", key, format_value(report[key]));
}

/// One row a plan, one column a metric.
void print_sweep(const Json& report) {
  fmt::print("{}\n", report["model"].get<std::string>());
  const Json& first = report["sweep"].front();
  for (const auto& [task, of_first] : first["tasks"].items()) {
    // Not every plan has every metric: match_limit is there where it was met.
    std::vector<std::string> metrics;
    for (const Json& row : report["sweep"])
      for (const auto& [metric, value] : row["tasks"][task].items())
        if (value.is_number() && std::find(metrics.begin(), metrics.end(), metric) == metrics.end())
          metrics.push_back(metric);
    fmt::print("\n  {}\n    {:<20}", task, "sharing");
    for (const std::string& metric : metrics) fmt::print(" {:>14}", metric);
    fmt::print(" {:>14} {:>14}\n", "parameters", "KV bytes/token");
    for (const Json& row : report["sweep"]) {
      const auto sharing = row["sharing"].get<std::string>();
      fmt::print("    {:<20}", sharing.empty() ? "none" : sharing);
      const Json& values = row["tasks"][task];
      for (const std::string& metric : metrics)
        fmt::print(" {:>14}", values.contains(metric) ? format_value(values[metric]) : "-");
      fmt::print(" {:>14} {:>14}\n", format_value(row["parameters"]),
                 format_value(row["kv_cache_bytes_per_token"]));
    }
  }
}

/// The report's name without ".json"; any other ending belongs to the name ("run-0.5").
std::string report_name(const std::filesystem::path& output) {
  return output.extension() == ".json" ? output.stem().string() : output.filename().string();
}

/// results.json -> results.items.jsonl; of another rank than 0, results.items.rank-1.jsonl
std::filesystem::path items_file(const std::filesystem::path& output, int64_t rank) {
  const std::string end = rank == 0 ? ".items.jsonl" : fmt::format(".items.rank-{}.jsonl", rank);
  return output.parent_path() / (report_name(output) + end);
}

/// Files that ranks of this run, or of one before it that was broken off, have left beside rank 0's.
std::vector<std::filesystem::path> rank_files(const std::filesystem::path& output) {
  const std::string begin = report_name(output) + ".items.rank-";
  const std::filesystem::path folder = output.parent_path().empty() ? "." : output.parent_path();
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(begin) && name.ends_with(".jsonl")) files.push_back(entry.path());
  }
  return files;
}

ItemStore open_store(const EvalOptions& options, const ModelSource& source, const Tokenizer& tokenizer,
                     int64_t rank) {
  if (!options.output) return {};
  std::vector<std::filesystem::path> others = rank_files(*options.output);
  others.push_back(items_file(*options.output, 0));
  const std::filesystem::path own = items_file(*options.output, rank);
  std::erase(others, own);
  return ItemStore(own, model_fingerprint(source, tokenizer), others);
}

std::string eval_stop_line(const EvalOptions& options) {
  return stop_line(options.output ? fmt::format("the same command goes on from what {} holds",
                                                items_file(*options.output, 0).string())
                                  : "nothing was kept (--output FILE keeps each item's result)");
}

/// Settings of the ranks that a process starts: threads and device.
Settings rank_settings(const EvalOptions& options) {
  return default_settings({"device=" + options.model.device});
}

void write_report(const EvalOptions& options, std::vector<Json> reports) {
  Json report;
  report["model"] = options.model.request.name_or_path;
  if (options.sweep) {
    report["sweep"] = std::move(reports);
  } else {
    report.update(reports.front());
  }
  if (options.output) report["items"] = items_file(*options.output, 0).filename().string();
  // A disk that is full does not take what is printed with it, nor a reader that has gone the file.
  const auto write = [&] {
    if (!options.output) return;
    write_file_atomic(*options.output, write_json(report));
    for (const std::filesystem::path& file : rank_files(*options.output)) std::filesystem::remove(file);
  };
  finish_after({write}, [&] {
    if (options.json) {
      fmt::print("{}", write_json(report));
    } else if (options.sweep) {
      print_sweep(report);
    } else {
      print_table(report);
    }
  });
}

int evaluate(EvalOptions options, EvalRanks& ranks) {
  const RankEnvironment& environment = ranks.environment();
  // Ranks leave it to whoever started them to tell.
  std::optional<StopNotice> stop_notice;
  if (!environment.launched) stop_notice.emplace(eval_stop_line(options), options.output.has_value());
  const ModelSource source = find_model_for(options.model, environment.local_rank);
  const std::vector<SharingPlan> plans = parse_sweep(options, source);
  options.task.batch_tokens = automatic_batch_tokens(source, environment.local_world_size);
  options.task.cache_tokens = automatic_cache_tokens(source, environment.local_world_size);
  const EvalTasks tasks = make_eval_tasks(options, source);
  ItemStore store = open_store(options, source, *tasks.tokenizer, environment.world.rank);
  if (environment.world.size > 1) ranks.check_same(common_ground(source, tasks, plans));
  std::vector<Json> reports = run_eval_tasks(source, tasks, plans, store, ranks);
  if (ranks.is_leader()) {
    store.hold_found();
    stop_notice.reset();  // once the report is there, the same command is refused
    write_report(options, std::move(reports));
  }
  ranks.leave();
  return kExitOk;
}

int evaluate(EvalOptions options, const RankEnvironment& environment) {
  EvalRanks ranks(environment);
  try {
    return evaluate(std::move(options), ranks);
  } catch (...) {
    ranks.fail();
  }
}

int run_eval(EvalOptions options) {
  if (options.output) require_new_file(*options.output, "--output");
  if (options.sweep) {
    if (!options.model.request.sharing.empty())
      throw bad_input("--sharing " + options.model.request.sharing, "--sweep beside it", "one of the two");
    options.sweep_anchor = std::exchange(options.model.request.anchor, std::nullopt);
  }
  const RankEnvironment environment = read_rank_environment();
  if (!environment.launched && !options.ranks.processes) return evaluate(std::move(options), environment);
  const Settings settings = rank_settings(options);
  check_rank_options(options.ranks, settings, environment);
  if (!environment.launched && *options.ranks.processes > 1) {
    const LaunchEnd end = start_ranks(options.ranks, settings, *options.ranks.processes);
    if (end.exit_code != kExitResumable) return end.exit_code;
    std::fputs(eval_stop_line(options).c_str(), stderr);
    if (!options.output && end.stop_signal != 0) end_of_signal(end.stop_signal);
    return end.exit_code;
  }
  use_threads(settings, environment.local_world_size);
  return evaluate(std::move(options), environment);
}

}  // namespace

void add_eval_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand(
      "eval", "Measure a model: loss, perplexity, exact match, public benchmarks, tasks of your own");
  const auto count = CLI::Range(int64_t{1}, int64_t{1} << 40);
  add_model_options(*command, options->model);
  command
      ->add_option(
          "--task", options->tasks,
          "NAME=PATH, several times, or a task file TASK.json (see below). response_loss, exact_match: "
          "Alpaca "
          "JSON or JSONL; perplexity: .txt, or JSONL with `text`; benchmarks: their file or its folder. A "
          "second file under one name is reported as NAME:FILENAME")
      ->allow_extra_args(false);
  command
      ->add_option("--tasks", options->benchmarks,
                   "Benchmarks in --data-dir, separated by commas (glue = all of GLUE), and task files")
      ->allow_extra_args(false);
  command->add_option("--data-dir", options->data_dir,
                      "Folder with hellaswag/, mmlu/, gsm8k/, wikitext/, glue/SST-2/ ... for --tasks");
  command
      ->add_option("--num-fewshot", options->task.num_fewshot,
                   "Examples before each question of a benchmark (default: the task's own, as lm-eval: 5 for "
                   "gsm8k, else 0)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
  command
      ->add_option(
          "--limit", options->task.limit,
          "Only the first N questions of each benchmark (of each subject of mmlu; pages of wikitext)")
      ->check(count);
  command->add_option(
      "--sweep", options->sweep,
      "Sharing plans separated by semicolons, \"23-26;27-30;none\": all tasks under each, the "
      "weights loaded once (--anchor applies to all)");
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
          "--stride", options->stride,
          "Step of perplexity's windows (default: --max-length; smaller gives every token more context)")
      ->check(count);
  command
      ->add_option("--max-new-tokens", options->max_new_tokens,
                   "Longest answer of exact_match, in tokens (default 256)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option(
      "--batch-size", options->batch_size,
      "Items of a forward pass: auto (as many tokens as fit a quarter of the free memory, at "
      "most 4096 on the "
      "CPU; the default) or N. Of answers that are generated together: auto = at most 32 whose KV "
      "caches fit another quarter");
  command->add_option(
      "--output", options->output,
      "Write the report to this new JSON file, and each item's result to FILE.items.jsonl as it "
      "comes: the same command after a run that was broken off computes the missing ones");
  command->add_option("--nproc-per-node", options->ranks.processes,
                      "Deal the items out over N processes of this machine (default: 1; torchrun does too)");
  command->add_flag("--json", options->json, "Print the report as JSON instead of a table");
  command->footer(
      "Report: {\"model\", \"tasks\": {NAME: {metric: value, ..., \"n\"}}, \"seconds\", \"tokens_per_s\",\n"
      "         \"peak_memory_bytes\", \"parameters\", \"kv_cache_bytes_per_token\", ...}\n"
      "  response_loss  loss per target token, loss_stderr (over records), tokens (targets), n (records)\n"
      "  perplexity     exp(loss), loss per token; every token with one before it (BOS is one) counted once, "
      "n (windows; "
      "the\n"
      "                 _stderr is over them)\n"
      "  exact_match    share of greedy answers equal to the output after trimming, exact_match_stderr, n\n"
      "  hellaswag      acc, acc_norm          mmlu  acc, by category and subject\n"
      "  gsm8k          exact_match (strict), exact_match_flexible\n"
      "  wikitext       word_perplexity, byte_perplexity, bits_per_byte\n"
      "  glue_...       cola: mcc; mnli, mnli_mismatch, qnli, rte, sst2, wnli: acc; mrpc, qqp: acc, f1\n"
      "An option that none of the tasks reads is refused.\n"
      "Prompts, normalisation and few-shot examples of the benchmarks are lm-eval 0.4.13's. With --sweep "
      "the\n"
      "report is {\"model\", \"sweep\": [one report a plan]}.\n"
      "Task file: {\"data\", \"prompt\": \"Q: {question}\\nA:\", \"choices\": [...] or a field, \"answer\": "
      "field,\n"
      "  \"metrics\"} or {..., \"target\": \"{answer}\", \"stop\", \"extract\", \"ignore\", "
      "\"max_new_tokens\"};\n"
      "  \"description\", \"examples\", \"num_fewshot\" with either (all keys: docs/evaluate.md).\n"
      "Examples:\n"
      "  satune eval MODEL --task response_loss=eval.json --task perplexity=wiki.txt\n"
      "  satune eval MODEL --tasks hellaswag,mmlu,glue --data-dir benchmarks --output scores.json\n"
      "  satune eval MODEL --task hellaswag=hellaswag_val.jsonl --sweep \"none;23-26;27-30\"\n"
      "  satune eval MODEL --task exact_match=held_out.json --sharing 23-26 --output shared.json");
  command->callback([options, &exit_code] { exit_code = run_eval(*options); });
}

}  // namespace satune
