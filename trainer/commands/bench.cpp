// satune bench: how fast a training step, or generation, of given shapes is on this machine.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>

#include "data/files/atomic_file.h"
#include "data/files/counted.h"
#include "data/files/error.h"
#include "model/llama.h"
#include "trainer/commands/bench_report.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/number_checks.h"
#include "trainer/commands/standard_output.h"
#include "trainer/compute_types.h"
#include "trainer/device.h"
#include "trainer/failure_report.h"
#include "trainer/parent_death.h"
#include "trainer/rank_environment.h"
#include "trainer/ranks.h"
#include "trainer/signals.h"
#include "trainer/synthetic_weights.h"

namespace satune {
namespace {

constexpr int64_t kMost = int64_t{1} << 31;
constexpr double kShareForCaches = 0.9;  // of the memory that is left beside the weights

BenchPlace place_of(const at::Device& device, const Settings& settings, const RankEnvironment& environment) {
  return {device.is_cpu() ? "cpu" : device.str(), operator_threads(settings, environment.local_world_size),
          environment.world.size};
}

struct BenchReport {
  Json json;
  std::string text;
};

void print_report(const BenchRequest& request, const BenchReport& report) {
  finish_after({[&] {
                 if (request.output) write_file_atomic(*request.output, write_json(report.json));
               }},
               [&] { fmt::print("{}", request.json ? write_json(report.json) : report.text); });
}

std::string bench_stop_line() {
  return stop_line("nothing was written, and the same command begins anew");
}

/// The variants in turns, each built and given back: two models need not fit at one time. The leader has the
/// report.
std::optional<BenchReport> bench_training(const BenchRequest& request,
                                          const std::vector<BenchVariant>& variants,
                                          const RankEnvironment& environment, Ranks& ranks,
                                          const at::Device& device) {
  const Settings& settings = variants.front().settings;
  ranks.connect_groups(device, shard_group_size(settings, ranks.world().size));
  std::vector<TrainingTimes> times(variants.size());
  for (int64_t turn = 0; turn < request.turns; ++turn) {
    for (size_t i = 0; i < variants.size(); ++i) {
      if (ranks.is_leader())
        spdlog::info("{}: {} after {}{}", variants[i].name(), counted(request.length.steps, "step"),
                     request.length.warm_up,
                     request.turns > 1 ? fmt::format(", turn {} of {}", turn + 1, request.turns) : "");
      add_turn(times[i], time_training(variants[i].model, variants[i].settings, request.length, device, ranks,
                                       environment.local_world_size));
    }
  }
  ranks.end();
  if (!ranks.is_leader()) return std::nullopt;
  const BenchPlace place = place_of(device, settings, environment);
  std::vector<TrainingResult> results;
  for (size_t i = 0; i < variants.size(); ++i)
    results.push_back(training_result(variants[i], std::move(times[i]), request, place));
  return BenchReport{bench_json(request, place, variants, results),
                     bench_text(request, place, variants, results)};
}

BenchReport bench_decoding(const BenchRequest& request, const std::vector<BenchVariant>& variants,
                           const RankEnvironment& environment, const at::Device& device) {
  const BenchVariant& dense = variants.front();
  std::vector<Llama> models;
  models.emplace_back(dense.model.config, std::vector<bool>(), weight_type(dense.settings.precision), device);
  fill_synthetic(models.front().weights(), dense.model.config.initializer_range);
  if (variants.size() == 2) {
    Llama shared = models.front().with_sharing(variants[1].model.config.sharing);
    models.push_back(std::move(shared));
  }
  std::vector<const Llama*> pointers;
  pointers.reserve(models.size());
  for (const Llama& model : models) pointers.push_back(&model);
  const auto available =
      static_cast<int64_t>(kShareForCaches * static_cast<double>(available_memory(device)));
  const DecodeSeries series = time_decoding(pointers, request.decoding, available,
                                            [](int64_t batch) { spdlog::info("batch {}", batch); });
  if (series.by_model.front().empty()) throw EnvironmentError("--decode: found no room: " + series.ended_by);
  const BenchPlace place = place_of(device, dense.settings, environment);
  return {bench_json(request, place, variants, series), bench_text(request, place, variants, series)};
}

std::optional<BenchReport> work_as_rank(const BenchRequest& request,
                                        const std::vector<BenchVariant>& variants,
                                        const RankEnvironment& environment, SignalWatch& signals) {
  const Settings& settings = variants.front().settings;
  use_threads(settings, environment.local_world_size);
  const at::Device device = choose_device(settings.device, environment.local_rank);
  if (request.decode) return bench_decoding(request, variants, environment, device);
  Ranks ranks(environment, settings, signals,
              [&](const std::string& message, int code) { report_rank_failure(environment, message, code); });
  if (environment.world.size == 1) return bench_training(request, variants, environment, ranks, device);
  try {
    ranks.meet();
    return bench_training(request, variants, environment, ranks, device);
  } catch (...) {
    ranks.end_failed();
  }
}

int run_bench(BenchRequest request) {
  request.length.document_length = request.document_length.value_or(request.sequence_length);
  if (request.output) require_new_file(*request.output, "--output");
  const std::vector<BenchVariant> variants = bench_variants(request);
  if (request.turns == 0) request.turns = variants.size() == 2 ? 2 : 1;
  const Settings& settings = variants.front().settings;
  const RankEnvironment environment = read_rank_environment();
  check_rank_options(request.ranks, settings, environment);
  if (request.decode && environment.world.size > 1)
    throw bad_input("--decode", fmt::format("{} ranks", environment.world.size), "one process");
  const int64_t processes = request.ranks.processes.value_or(1);
  if (!environment.launched && processes > 1) {
    const LaunchEnd end = start_ranks(request.ranks, settings, processes);
    if (end.exit_code != kExitResumable) return end.exit_code;
    std::fputs(bench_stop_line().c_str(), stderr);
    end_of_signal(end.stop_signal != 0 ? end.stop_signal : SIGTERM);
  }
  if (environment.world.rank > 0) spdlog::set_level(std::max(spdlog::get_level(), spdlog::level::warn));
  SignalWatch signals;
  // A rank that our launcher started leaves it to that to tell.
  std::optional<StopNotice> stop_notice;
  if (!started_by_launcher())
    stop_notice.emplace(environment.world.rank == 0 ? bench_stop_line() : "", /*resumable=*/false);
  const std::optional<BenchReport> report = work_as_rank(request, variants, environment, signals);
  signals.end_at_once();
  stop_notice.reset();  // from here on something is written
  if (report) print_report(request, *report);
  return kExitOk;
}

std::vector<CLI::Option*> add_training_options(CLI::App& command, BenchRequest& options) {
  const CLI::Range counts(int64_t{1}, kMost);
  return {
      command.add_option("--sequence-length", options.sequence_length, "Tokens of a row (default 4096)")
          ->check(CLI::Range(int64_t{2}, kMost)),
      command
          .add_option("--document-length", options.document_length,
                      "Tokens of each of the documents that a row is packed of (default: the row)")
          ->check(CLI::Range(int64_t{2}, kMost)),
      command.add_option("--micro-batch", options.micro_batch, "Rows of a micro-batch (default 1)")
          ->check(counts),
      command
          .add_option("--gradient-accumulation-steps", options.accumulation,
                      "Micro-batches of a step and rank (default 1)")
          ->check(counts),
      command.add_option("--gradient-checkpointing", options.checkpointing,
                         "true (default) | selective | false | auto"),
      command.add_option("--zero-stage", options.zero_stage, "0 to 3 (default: the lowest that fits)")
          ->check(CLI::Range(int64_t{0}, int64_t{3})),
      command.add_option("--nproc-per-node", options.ranks.processes,
                         "Ranks on this machine (default 1; torchrun, srun and mpirun work as for train)"),
      command.add_option("--steps", options.length.steps, "Steps that are timed (default 10)")->check(counts),
      command.add_option("--warm-up", options.length.warm_up, "Steps before them (default 3)")
          ->check(CLI::Range(int64_t{0}, kMost)),
      command
          .add_option("--turns", options.turns,
                      "How often dense and shared take turns (default 2 with --sharing, else 1)")
          ->check(counts),
      command
          .add_option("--peak-tflops", options.peak_tflops,
                      "Peak of one device for the MFU (default: the matmul rate measured in this run)")
          ->check(positive())};
}

std::vector<CLI::Option*> add_decoding_options(CLI::App& command, BenchRequest& options) {
  const CLI::Range counts(int64_t{1}, kMost);
  return {command.add_option("--prompt-length", options.decoding.prompt, "Tokens of a prompt (default 64)")
              ->check(counts),
          command.add_option("--new-tokens", options.decoding.tokens, "Tokens after it (default 32)")
              ->check(counts),
          command
              .add_option("--max-batch", options.decoding.max_batch,
                          "Largest number of sequences (default 16); memory may end it earlier")
              ->check(counts)};
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<BenchRequest>();
  CLI::App* command = app.add_subcommand(
      "bench", "Speed of a training step or of generation at given shapes, random weights");
  command
      ->add_option(
          "model", options->model,
          "JSON with the keys of a Llama's config.json, or a model directory, whose config alone is read")
      ->required();
  command->add_option(
      "overrides", options->overrides,
      "key=value: optimizer_offload, num_threads, max_grad_norm and other settings of a step");
  command->add_option("--layers", options->layers, "Cut the model to its first K layers")
      ->check(CLI::Range(int64_t{1}, kMost));
  command->add_option("--precision", options->precision, "bf16 (default) | fp32 | fp16");
  add_sharing_options(*command, options->sharing, options->anchor);
  command->add_option("--device", options->device, "auto (default) | cpu | cuda");
  const std::vector<CLI::Option*> training = add_training_options(*command, *options);
  CLI::Option* decode = command->add_flag(
      "--decode", options->decode, "Time generation at batches 1, 2, 4 ... instead of a training step");
  for (CLI::Option* option : training) decode->excludes(option);
  for (CLI::Option* option : add_decoding_options(*command, *options)) option->needs(decode);
  command->add_flag("--json", options->json, "JSON instead of tables");
  command->add_option("--output", options->output, "New file for the JSON");
  command->footer(
      "With --sharing the dense model and the shared one are measured in turns, in one run: on a busy "
      "machine\n"
      "only their ratio counts. Floors (a large matmul, a large copy) are measured in the same run; a part's "
      "ratio\n"
      "is its time over the higher of its two floors.\n"
      "Examples:\n"
      "  satune bench configs/arch-llama3-8b.json --sequence-length 8192\n"
      "  satune bench configs/arch-llama3.2-1b.json --layers 2 --sequence-length 512 --precision fp32 "
      "--steps 5\n"
      "  satune bench configs/arch-llama3-8b.json --sharing 23-26 --output bench.json\n"
      "  satune bench configs/arch-llama3-8b.json --decode --sharing 23-26 --max-batch 64");
  command->callback([options, &exit_code] { exit_code = run_bench(*options); });
}

}  // namespace satune
