// satune plan: what a run needs on each of its ranks and what they send, before anything is loaded.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "trainer/commands/commands.h"
#include "trainer/commands/number_checks.h"
#include "trainer/commands/plan_report.h"

namespace satune {
namespace {

constexpr int64_t kMaxWorld = 16384;

void add_plan_options(CLI::App& command, PlanRequest& options) {
  command.add_option("config", options.config, "JSON file of settings, as `satune train` takes it")
      ->required();
  command.add_option(
      "overrides", options.overrides,
      "key=value, each replacing a setting; model_name_or_path may be an architecture's JSON file");
  command.add_option("--world-size", options.world_size, "Ranks (default 1)")
      ->check(CLI::Range(int64_t{1}, kMaxWorld));
  command.add_option(
      "--device", options.device,
      "h200 | h100 | a100-80 | a100-40 | cpu | memory of a card such as 80GiB (default: what this "
      "machine has)");
  command.add_option("--stage", options.stage, "ZeRO stage, instead of the setting zero_stage")
      ->check(CLI::Range(int64_t{0}, int64_t{kStages - 1}));
  command
      .add_option("--flops", options.flops,
                  "FLOP/s that a rank achieves (default: half the peak of the named device)")
      ->check(positive());
  command
      .add_option(
          "--bandwidth", options.bandwidth,
          "Bytes/s that a rank sends (default: the named device's link inside a machine, or between them)")
      ->check(positive());
  command
      .add_option("--measured", options.measured,
                  "Run folder: count with the rate that its steps achieved on this device")
      ->excludes("--flops");
  command
      .add_option("--steps", options.steps,
                  "Steps of the whole run (default: max_steps, else what the data and the epochs give)")
      ->check(positive());
  command.add_option("--price", options.price, "Of one device for an hour: tells what the run costs")
      ->check(not_negative());
  command.add_flag("--json", options.json, "JSON instead of a table");
}

}  // namespace

void add_plan_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<PlanRequest>();
  CLI::App* command =
      app.add_subcommand("plan", "Memory, traffic and speed of a run on every ZeRO stage, predicted");
  add_plan_options(*command, *options);
  command->footer(
      "Reads the config and the model's headers, no weights; data only to count the steps of a run that is "
      "given in "
      "epochs. Rows are taken as full (max_length).\n"
      "Times are predictions: from half the peak rate of the device, or from --flops or --measured.\n"
      "Card sizes are what a run can have of them; modes: what gradient_checkpointing keeps, and "
      "optimizer_offload.\n"
      "Examples:\n"
      "  satune plan configs/llama3-8b-sa.json --world-size 8 --device h200\n"
      "  satune plan configs/llama3-8b-sa.json model_name_or_path=configs/arch-llama3-70b.json --world-size "
      "1024 "
      "--device h100 --json");
  command->callback([options, &exit_code] {
    const Report report = make_report(*options);
    fmt::print("{}", options->json ? write_json(report_json(report)) : report_text(report));
    exit_code = kExitOk;
  });
}

}  // namespace satune
