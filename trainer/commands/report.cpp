// satune report: one page about a run, as a file that needs no network.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "evaluation/run_report/run_page.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"

namespace satune {
namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::optional<std::string> output;
};

std::filesystem::path output_of(const ReportOptions& options) {
  if (options.output) {
    require_new_file(*options.output, "--output");
    return *options.output;
  }
  if (options.runs.size() > 1)
    throw bad_input("satune report", fmt::format("{} runs and no --output", options.runs.size()),
                    "--output FILE.html for a page about several");
  return std::filesystem::path(options.runs.front()) / "report.html";
}

int run_report_command(const ReportOptions& options) {
  std::vector<RunReader> readers;
  for (const std::string& run : options.runs) {
    readers.emplace_back(run);
    if (!readers.back().is_run())
      throw bad_input(run, "a folder without metrics.jsonl and without a run's config.json",
                      "the output_dir of a run");
    readers.back().refresh();
  }
  std::vector<const RunHistory*> runs;
  for (const RunReader& reader : readers) runs.push_back(&reader.history());
  const std::filesystem::path output = output_of(options);
  const std::string page = run_report(runs);
  write_file_atomic(output, page);
  fmt::print("{}\n", output.string());
  return kExitOk;
}

}  // namespace

void add_report_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report", "Write an HTML page about a run, finished or not");
  command->add_option("run", options->runs, "Run folder (output_dir); several stand side by side")
      ->required();
  command->add_option(
      "--output", options->output,
      "Write it to this new file (default: report.html in the run folder, replaced each time)");
  command->footer(
      "The page holds everything inside: no network, no script. It reads files only, so that a run may be at "
      "work.\n"
      "Examples:\n"
      "  satune report runs/sa\n"
      "  satune report runs/dense runs/sa --output both.html");
  command->callback([options, &exit_code] { exit_code = run_report_command(*options); });
}

}  // namespace satune
