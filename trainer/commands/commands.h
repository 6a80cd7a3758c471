// The subcommands. Each add_*() declares one subcommand on `app` with its options and help, and sets its
// callback, which stores the exit code in `exit_code` or throws: BadInput (exit 2), EnvironmentError (3),
// anything else (1). main() has the only handler. Options live in a shared_ptr that the callback owns:
//
//   void add_share_command(CLI::App& app, int& exit_code) {
//     auto options = std::make_shared<ShareOptions>();
//     CLI::App* command = app.add_subcommand("share", "Apply SA to a model without training");
//     command->add_option("model", options->model, "...")->required();
//     command->footer("Example:\n  satune share MODEL OUT --sharing 23-26");
//     command->callback([options, &exit_code] { exit_code = share(*options); });
//   }
//
// Results go to stdout (or --output), everything else to stderr. Do not print errors: throw.
#pragma once

#include <CLI/App.hpp>

namespace satune {

void add_init_command(CLI::App& app, int& exit_code);      // commands/init.cpp
void add_train_command(CLI::App& app, int& exit_code);     // commands/train.cpp
void add_export_command(CLI::App& app, int& exit_code);    // commands/export.cpp
void add_share_command(CLI::App& app, int& exit_code);     // commands/share.cpp
void add_generate_command(CLI::App& app, int& exit_code);  // commands/generate.cpp
void add_eval_command(CLI::App& app, int& exit_code);      // commands/eval.cpp
void add_diff_command(CLI::App& app, int& exit_code);      // commands/diff.cpp
void add_data_command(CLI::App& app, int& exit_code);      // commands/data.cpp
void add_analyze_command(CLI::App& app, int& exit_code);   // commands/analyze.cpp
void add_compare_command(CLI::App& app, int& exit_code);   // commands/compare.cpp
void add_plan_command(CLI::App& app, int& exit_code);      // commands/plan.cpp
void add_report_command(CLI::App& app, int& exit_code);    // commands/report.cpp
void add_watch_command(CLI::App& app, int& exit_code);     // commands/watch.cpp
void add_bench_command(CLI::App& app, int& exit_code);

}  // namespace satune
