// satune train: a fine-tuning run, or what it would do.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>

#include "data/files/error.h"
#include "data/files/json.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/rank_options.h"
#include "trainer/descriptor_limit.h"
#include "trainer/dry_run.h"
#include "trainer/failure_report.h"
#include "trainer/fine_tune.h"
#include "trainer/parent_death.h"
#include "trainer/profile.h"
#include "trainer/rank_environment.h"
#include "trainer/settings.h"
#include "trainer/signals.h"

namespace satune {
namespace {

struct TrainCommand {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume;
  bool dry_run = false, print_config = false, allow_changes = false;
  std::optional<int64_t> profile_steps;
  RankOptions ranks;
};

// Settings are listed from their table, so that the help cannot fall behind.
std::string settings_help() {
  std::string text =
      "Examples:\n"
      "  satune train configs/llama3-8b-sa.json model_name_or_path=MODEL train_file=alpaca.json "
      "output_dir=runs/sa\n"
      "  satune train config.json learning_rate=1e-5 --sharing.layers=23-26 --dry-run\n"
      "  satune train config.json --nproc-per-node 4 --max-restarts 3\n"
      "  torchrun --no-python --nproc-per-node 4 satune train config.json\n"
      "  satune train --print-config > config.json\n"
      "Ranks: unless a launcher (torchrun, srun, mpirun: launch/) has started it as one, the command starts "
      "a "
      "rank\n"
      "for each visible card, passes signals on to them and names the one that failed first.\n"
      "SIGUSR1 saves a snapshot; SIGTERM and Ctrl-C save the last finished step and exit with 4: the same "
      "command\n"
      "then continues. With SATUNE_STOPPED_FILE=PATH set they make that file and exit with 0 instead, for "
      "launchers\n"
      "that take any other code for a failure. Exit codes: 2 bad command line, input or config, 3 "
      "environment, "
      "4\n"
      "stopped and resumable.\n\n"
      "Settings (CONFIG keys; --print-config shows types and defaults):\n";
  for (const SettingInfo& info : setting_infos())
    text += fmt::format("  {:<28} {}\n", info.key, info.meaning);
  return text;
}

// What CLI11 did not know must be --key=value; anything else is a misspelt option.
void check_extras(const CLI::App& command) {
  std::vector<std::string> known;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  }
  for (const SettingInfo& info : setting_infos()) known.push_back("--" + info.key + "=VALUE");
  for (const std::string& word : command.remaining()) {
    if (word.find('=') != std::string::npos) continue;
    std::string nearest = nearest_name(word, known);
    if (nearest.empty()) nearest = nearest_name(word + "=VALUE", known);
    throw bad_input("satune train", fmt::format("the unknown option {}", word),
                    nearest.empty() ? "an option that --help lists, or --key=value" : nearest);
  }
}

// The first word is the config, unless it is a setting and no file.
bool is_setting(const std::string& word) {
  std::error_code error;
  return word.find('=') != std::string::npos && !std::filesystem::exists(word, error);
}

Settings settings_of(const TrainCommand& command, std::vector<std::string> overrides) {
  overrides.insert(overrides.begin(), command.overrides.begin(), command.overrides.end());
  if (!command.resume.empty()) overrides.push_back("resume=" + command.resume);
  if (command.allow_changes) overrides.push_back("allow_changes=true");
  if (!command.config.empty() && !is_setting(command.config)) return read_settings(command.config, overrides);
  if (!command.print_config) throw bad_input("satune train", "no CONFIG", "the path of a JSON config");
  if (!command.config.empty()) overrides.insert(overrides.begin(), command.config);
  return default_settings(overrides);
}

// Of all ranks that a launcher may have started, one prints.
int print_dry_run(const TrainCommand& command, const Settings& settings, const RankEnvironment& ranks) {
  if (ranks.world.rank != 0) return kExitOk;
  const int64_t local = ranks.launched ? ranks.local_world_size : process_count(command.ranks, settings);
  RunPlan plan(settings, ranks.launched ? ranks.world.size : local);
  fmt::print("{}", dry_run_report(plan, local));
  return kExitOk;
}

// torchrun, srun and mpirun take every exit code but 0 for a failure, and end the other ranks or start them
// again. Where a script asks for it, a file tells of the stop and the code is 0. Our launcher knows 4.
std::filesystem::path stopped_file() {
  const char* file = std::getenv("SATUNE_STOPPED_FILE");
  return file == nullptr || started_by_launcher() ? "" : file;
}

int with_stopped_file(const std::filesystem::path& file, const std::function<int()>& run) {
  std::error_code ignored;
  if (!file.empty()) std::filesystem::remove(file, ignored);  // of an attempt before this one
  const int exit_code = run();
  if (file.empty() || exit_code != kExitResumable) return exit_code;
  return std::ofstream(file, std::ios::app).is_open() ? kExitOk : exit_code;
}

int run_or_start_ranks(const TrainCommand& command, const Settings& settings, const TrainOptions& options) {
  if (!options.ranks.launched) {
    const int64_t processes = process_count(command.ranks, settings);
    if (needs_launcher(command.ranks, processes)) {
      const LaunchEnd end = start_ranks(command.ranks, settings, processes);
      if (end.killed) end_of_signal(end.stop_signal);
      return end.exit_code;
    }
  }
  return run_training(settings, options);
}

void check_profile(const TrainCommand& command) {
  if (!command.profile_steps) return;
  if (*command.profile_steps < 1 || *command.profile_steps > kMostProfiledSteps)
    throw bad_input("--profile", std::to_string(*command.profile_steps),
                    fmt::format("1 to {} steps", kMostProfiledSteps));
  if (command.dry_run || command.print_config)
    throw bad_input("--profile", command.dry_run ? "--dry-run" : "--print-config", "a run that does steps");
}

int run_train(const TrainCommand& command, const std::vector<std::string>& overrides) {
  check_profile(command);
  const Settings settings = settings_of(command, overrides);
  if (command.print_config) {
    fmt::print("{}", print_config(settings));
    return kExitOk;
  }
  TrainOptions options;
  options.ranks = read_rank_environment();
  options.report = [ranks = options.ranks](const std::string& message, int exit_code) {
    report_rank_failure(ranks, message, exit_code);
  };
  check_rank_options(command.ranks, settings, options.ranks);
  if (command.dry_run) return print_dry_run(command, settings, options.ranks);
  raise_descriptor_limit();
  const std::filesystem::path file = stopped_file();
  options.stopped_file = file.string();
  options.profile_steps = command.profile_steps.value_or(0);
  return with_stopped_file(file, [&] { return run_or_start_ranks(command, settings, options); });
}

}  // namespace

void add_train_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<TrainCommand>();
  CLI::App* command = app.add_subcommand("train", "Fine-tune a model (or train one from scratch)");
  command->add_option("config", options->config, "JSON file of settings; // comments are allowed");
  command->add_option("overrides", options->overrides, "key=value or --key=value, each replacing a setting");
  command->add_option(
      "--resume", options->resume,
      "auto: take up the newest complete snapshot of output_dir (default); never; or a snapshot folder");
  command->add_flag("--dry-run", options->dry_run,
                    "Check everything, print the plan and one example as trained, write nothing");
  command->add_flag("--print-config", options->print_config,
                    "Print every setting with default and meaning: a usable config");
  command->add_flag("--allow-changes", options->allow_changes,
                    "Resume although settings or data that change the trajectory differ");
  command->add_option(
      "--profile", options->profile_steps,
      "Record N steps, after two to warm up, as traces for ui.perfetto.dev in the run folder: "
      "profile/rank0.json ...");
  add_rank_options(*command, options->ranks);
  command->allow_extras();  // --key=value
  command->footer(settings_help);
  command->callback([options, command, &exit_code] {
    check_extras(*command);
    exit_code = run_train(*options, command->remaining());
  });
}

}  // namespace satune
