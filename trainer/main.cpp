// The program: its subcommands, and the one place where errors become a line and an exit code.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "data/files/error.h"
#include "data/files/json.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/option_errors.h"
#include "trainer/commands/standard_output.h"
#include "trainer/failure_report.h"
#include "trainer/host_allocator.h"
#include "trainer/parent_death.h"
#include "trainer/rank_environment.h"

namespace satune {
namespace {

constexpr const char* kVersion = SATUNE_VERSION;

void set_up_log(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("satune"));
  spdlog::set_pattern("[%H:%M:%S] %^%l%$ %v");
  const auto known = spdlog::level::from_str(level);
  if (known == spdlog::level::off && level != "off") {
    throw bad_input("--log-level", "\"" + level + "\"", "trace, debug, info, warn, error or off");
  }
  spdlog::set_level(known);
}

// A rank leaves the message also to whoever started it.
int report(const CLI::App& app, const Failure& failure) {
  const std::vector<const CLI::App*> commands = app.get_subcommands({});
  const bool runs_ranks = std::any_of(commands.begin(), commands.end(), [](const CLI::App* command) {
    const std::string& name = command->get_name();
    return (name == "train" || name == "eval" || name == "bench") && command->parsed();
  });
  if (runs_ranks) {
    try {
      report_rank_failure(read_rank_environment(), failure.message, failure.exit_code);
      return failure.exit_code;
    } catch (const BadInput&) {
      // The environment itself is what was wrong: there is no file to trust.
    }
  }
  print_error(failure.message);
  return failure.exit_code;
}

int misuse(const std::string& message) {
  print_error(message);
  return kExitBadInput;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// "found the unknown option --dry-rum, expected --dry-run": what is nearest to what was not understood.
std::string describe_extras(const CLI::App& app) {
  const CLI::App* command = app.get_subcommands().empty() ? &app : app.get_subcommands().front();
  const std::vector<std::string> extras = app.remaining(/*recurse=*/true);
  const std::string word = extras.empty() ? "" : extras.front();
  const bool is_option = word.starts_with("-");
  std::vector<std::string> known = option_names(*command);
  if (!is_option) {
    known.clear();
    for (const CLI::App* subcommand : command->get_subcommands({})) known.push_back(subcommand->get_name());
  }
  const std::string name = word.substr(0, word.find('=')),
                    where = command == &app ? "" : "satune " + command->get_name() + ": ";
  const std::string nearest = nearest_name(name, known);
  return fmt::format("{}found the unknown {} {}, expected {}", where,
                     is_option         ? "option"
                     : command == &app ? "command"
                                       : "argument",
                     name, nearest.empty() ? "what --help lists" : nearest);
}

std::string describe_misuse(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = app.get_subcommands().empty() ? app : *app.get_subcommands().front();
  const std::string name = &command == &app ? "satune" : "satune " + command.get_name();
  return fmt::format("{0}: {1} (see {0} --help)", name, describe_option_error(command, error));
}

void add_commands(CLI::App& app, int& exit_code) {
  add_init_command(app, exit_code);
  add_train_command(app, exit_code);
  add_export_command(app, exit_code);
  add_share_command(app, exit_code);
  add_generate_command(app, exit_code);
  add_eval_command(app, exit_code);
  add_diff_command(app, exit_code);
  add_data_command(app, exit_code);
  add_analyze_command(app, exit_code);
  add_compare_command(app, exit_code);
  add_plan_command(app, exit_code);
  add_report_command(app, exit_code);
  add_watch_command(app, exit_code);
  add_bench_command(app, exit_code);
}

int run(CLI::App& app, int argc, char** argv) {
  int exit_code = kExitOk;
  const char* level_from_environment = std::getenv("SATUNE_LOG");
  std::string level = level_from_environment ? level_from_environment : "info";
  app.set_version_flag("--version", std::string("satune ") + kVersion);
  app.add_option("--log-level", level,
                 "trace | debug | info | warn | error | off (default: $SATUNE_LOG, else info)");
  app.parse_complete_callback([&level] { set_up_log(level); });
  app.require_subcommand(1);
  app.footer(
      "satune COMMAND --help tells the options of each, with examples.\n"
      "Exit codes: 2 bad command line, input or config; 3 environment; 4 stopped by a signal, resumable; 1 "
      "other.\n"
      "A signal ends what cannot be taken up again as any program (a shell shows 128 and its number).");
  add_commands(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    const int code = app.exit(help_or_version);
    finish_standard_output();
    return code;
  } catch (const CLI::ExtrasError&) {
    return misuse(describe_extras(app));
  } catch (const CLI::RequiredError& error) {
    if (!app.get_subcommands().empty()) return misuse(describe_misuse(app, error));
    const auto extras = app.remaining();
    return misuse(extras.empty() ? "found no command, expected one that --help lists" : describe_extras(app));
  } catch (const CLI::ParseError& error) {
    return misuse(describe_misuse(app, error));
  }
  finish_standard_output();
  return exit_code;
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  satune::die_with_launcher();
  satune::set_up_host_memory();
  CLI::App app("satune fine-tunes Llama-family models with Shared Attention.", "satune");
  int exit_code = satune::kExitFailure;
  try {
    exit_code = satune::run(app, argc, argv);
  } catch (...) {
    exit_code = satune::report(app, satune::current_failure());
  }
  // Everything of ours is closed. LibTorch would go on to take its operators out of its tables one by one:
  // 0.2 s, and 100 MiB of its libraries' pages touched for nothing.
  spdlog::default_logger()->flush();
  std::fflush(nullptr);
  std::_Exit(exit_code);
}
