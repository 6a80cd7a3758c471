// The program: its subcommands, and the one place where errors become a line and an exit code.
#include <c10/util/Exception.h>
#include <malloc.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "data/files/error.h"
#include "data/files/json.h"
#include "trainer/commands/commands.h"

namespace satune {
namespace {

constexpr const char* kVersion = SATUNE_VERSION;

// Buffers of activations come and go every layer. Below these sizes glibc would hand each back to the kernel
// and fault it in again (measured: 20 % of a step).
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc takes
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

void set_up_log(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("satune"));
  spdlog::set_pattern("[%H:%M:%S] %^%l%$ %v");
  const auto known = spdlog::level::from_str(level);
  if (known == spdlog::level::off && level != "off") {
    throw bad_input("--log-level", "\"" + level + "\"", "trace, debug, info, warn, error or off");
  }
  spdlog::set_level(known);
}

int report(const std::string& message, int exit_code) {
  std::string line = message.substr(0, message.find_last_not_of(" \n") + 1);
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "satune: error: %s\n", line.c_str());
  return exit_code;
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
  const std::string command =
      app.get_subcommands().empty() ? "satune" : "satune " + app.get_subcommands().front()->get_name();
  return fmt::format("{0}: {1} (see {0} --help)", command, error.what());
}

void add_commands(CLI::App& app, int& exit_code) {
  add_init_command(app, exit_code);
  add_train_command(app, exit_code);
  add_export_command(app, exit_code);
  add_share_command(app, exit_code);
  add_generate_command(app, exit_code);
  add_eval_command(app, exit_code);
  add_diff_command(app, exit_code);
  add_plan_command(app, exit_code);
}

int run(int argc, char** argv) {
  int exit_code = kExitOk;
  CLI::App app("satune fine-tunes Llama-family models with Shared Attention.", "satune");
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
      "other.");
  add_commands(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ExtrasError&) {
    return report(describe_extras(app), kExitBadInput);
  } catch (const CLI::RequiredError& error) {
    if (!app.get_subcommands().empty()) return report(describe_misuse(app, error), kExitBadInput);
    const auto extras = app.remaining();
    return report(extras.empty() ? "found no command, expected one that --help lists" : describe_extras(app),
                  kExitBadInput);
  } catch (const CLI::ParseError& error) {
    return report(describe_misuse(app, error), kExitBadInput);
  }
  return exit_code;
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  using namespace satune;
  keep_freed_memory();
  try {
    return run(argc, argv);
  } catch (const BadInput& error) {
    return report(error.what(), kExitBadInput);
  } catch (const EnvironmentError& error) {
    return report(error.what(), kExitEnvironment);
  } catch (const c10::OutOfMemoryError& error) {
    return report(std::string("out of device memory: ") + error.what_without_backtrace(), kExitEnvironment);
  } catch (const c10::Error& error) {
    return report(error.what_without_backtrace(), kExitFailure);
  } catch (const std::bad_alloc&) {
    return report("out of memory", kExitEnvironment);
  } catch (const std::exception& error) {
    return report(error.what(), kExitFailure);
  }
}
