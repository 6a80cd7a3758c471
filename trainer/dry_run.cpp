#include "trainer/dry_run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "data/files/atomic_file.h"
#include "data/files/counted.h"
#include "data/files/error.h"
#include "data/preview.h"
#include "trainer/attention_choice.h"
#include "trainer/device.h"
#include "trainer/fp8_trial.h"
#include "trainer/memory_modes.h"
#include "trainer/progress.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"

namespace satune {
namespace {

constexpr int64_t kPreviewTokens = 96;  // of the example; the middle of a longer one is left out

std::string line(std::string_view name, const std::string& text) {
  return fmt::format("{:<12}{}\n", name, text);
}

std::string model_lines(const RunPlan& plan) {
  const ModelConfig& config = plan.config();
  std::string text =
      line("model", fmt::format("{}: {}, {} parameters, {}", plan.model_directory().string(),
                                counted(config.num_hidden_layers, "layer"),
                                format_count(static_cast<double>(plan.table().parameter_count())),
                                torch_name(config.dtype)));
  std::string sharing = "none";
  if (!config.sharing.empty()) {
    sharing = fmt::format("layers {} (anchor {}): {} of {} layers use another's attention weights{}",
                          config.sharing.layers_text(), to_string(config.sharing.rule()),
                          config.sharing.num_shared(), config.num_hidden_layers,
                          plan.dense_source() ? "; their q_proj and k_proj are left out" : "");
  }
  text += line("sharing", sharing);
  if (plan.trained_parameters() != plan.table().parameter_count()) {
    text += line("trained",
                 fmt::format("{} parameters", format_count(static_cast<double>(plan.trained_parameters()))));
  }
  const Tokenizer& tokenizer = plan.tokenizer();
  return text + line("tokenizer", fmt::format("{} of {} ids for a vocabulary of {}", tokenizer.kind(),
                                              tokenizer.vocab_size(), config.vocab_size));
}

std::string data_line(std::string_view name, const std::filesystem::path& file, const DatasetSummary& s) {
  std::string text = fmt::format("{}: {} of {}, {} tokens ({} targets), longest {}", file.string(),
                                 counted(s.kept, "sample"), counted(s.records, "record"),
                                 format_count(static_cast<double>(s.tokens)),
                                 format_count(static_cast<double>(s.target_tokens)), s.longest);
  if (s.dropped_empty > 0) text += fmt::format("; {} dropped (nothing to learn)", s.dropped_empty);
  if (s.dropped_overlength > 0) text += fmt::format("; {} dropped (too long)", s.dropped_overlength);
  if (s.truncated > 0) text += fmt::format("; {} truncated", s.truncated);
  return line(name, text);
}

std::string data_lines(RunPlan& plan) {
  const auto lines_of = [&](std::string_view name, BatchSource& source) {
    const Dataset& data = source.dataset();
    return data_line(name, data.cache().data_file(), data.summary());
  };
  std::string text = lines_of("train", plan.train());
  text += plan.eval() ? lines_of("eval", *plan.eval()) : line("eval", "none");
  const bool plain = plan.train().dataset().cache().format() == DataFormat::kText;
  return text + line("template",
                     plain ? "none: plain text, every token is a target" : plan.prompt_template().name());
}

// Mean, least and most of a quantity over the steps of the first epoch.
struct Spread {
  double sum = 0;
  int64_t least = std::numeric_limits<int64_t>::max(), most = 0, count = 0;
  void add(int64_t value) {
    sum += static_cast<double>(value);
    least = std::min(least, value);
    most = std::max(most, value);
    ++count;
  }
  std::string text() const {
    return fmt::format("{:.1f} ({} to {})", sum / static_cast<double>(count), least, most);
  }
};

std::string step_lines(RunPlan& plan) {
  const Settings& settings = plan.settings();
  Spread samples, tokens, targets;
  const int64_t steps = std::min(plan.steps_of_epoch(0), plan.total_steps());
  for (int64_t step = 0; step < steps; ++step) {
    const StepPosition at = plan.position(step);
    int64_t documents = 0;
    for (int64_t row = at.first_row; row < at.first_row + at.rows; ++row) {
      documents += static_cast<int64_t>(plan.train().plan(at.epoch).row(row).size());
    }
    samples.add(documents);
    tokens.add(plan.train().token_count(at.epoch, at.first_row, at.rows));
    targets.add(plan.train().target_count(at.epoch, at.first_row, at.rows));
  }
  const int64_t rows = plan.train().rows(0);
  const double full = static_cast<double>(plan.train_summary().tokens) /
                      (static_cast<double>(rows) * static_cast<double>(settings.max_length));
  std::string text = line(
      "rows", fmt::format("{} an epoch, {} ({:.1f} % of {} tokens each)", rows,
                          settings.packing ? "packed" : "one sample each", 100 * full, settings.max_length));
  text += line("step",
               fmt::format("{} = {} a micro-batch x {} accumulated{}", counted(plan.rows_per_step(), "row"),
                           settings.per_device_train_batch_size, settings.gradient_accumulation_steps,
                           plan.world_size() == 1 ? "" : fmt::format(" x {} ranks", plan.world_size())));
  text += line("steps", fmt::format("{} ({:.2f} epochs; {} in the first)", plan.total_steps(),
                                    plan.epochs_of_run(), plan.steps_of_epoch(0)));
  text += line("warm-up", fmt::format("{} = {:.1f} % of the run", counted(plan.warmup_steps(), "step"),
                                      100.0 * static_cast<double>(plan.warmup_steps()) /
                                          static_cast<double>(plan.total_steps())));
  text += line("per step", fmt::format("samples {}, tokens {}, target tokens {}", samples.text(),
                                       tokens.text(), targets.text()));
  return text;
}

void require_writable(const std::filesystem::path& output_dir) {
  std::filesystem::path parent = std::filesystem::absolute(output_dir);
  std::error_code ignored;
  while (!std::filesystem::exists(parent, ignored) && parent.has_relative_path())
    parent = parent.parent_path();
  if (!std::filesystem::is_directory(parent, ignored)) {
    throw bad_input("output_dir " + output_dir.string(), "a file at " + parent.string(), "a folder");
  }
  if (access(parent.c_str(), W_OK | X_OK) != 0) {
    throw EnvironmentError(fmt::format("output_dir {}: found {} ({}), expected a folder that can be written",
                                       output_dir.string(), parent.string(), std::strerror(errno)));
  }
}

std::string disk_lines(RunPlan& plan) {
  const std::filesystem::path folder = plan.settings().output_dir;
  const DiskNeed need = disk_need(plan);
  const uint64_t free_bytes = free_disk_bytes(folder);
  std::string text =
      line("snapshots", fmt::format("{} each, {} kept, {} while one is saved{}; {} free under {}",
                                    format_bytes(static_cast<double>(need.snapshot_bytes)), need.snapshots,
                                    format_bytes(static_cast<double>(need.saving_bytes)),
                                    need.export_bytes == 0
                                        ? ""
                                        : fmt::format(", and {} of exports",
                                                      format_bytes(static_cast<double>(need.export_bytes))),
                                    format_bytes(static_cast<double>(free_bytes)), folder.string()));
  try {
    check_disk(folder, need, free_bytes);
  } catch (const EnvironmentError& error) {
    text += fmt::format("WARNING     a run here would stop before step 0: {}\n", error.what());
  }
  return text;
}

// The device that the run would compute on; where there is none, the CPU stands in and `warning` says so.
at::Device device_of(const Settings& settings, std::string& warning) {
  try {
    return choose_device(settings.device);
  } catch (const EnvironmentError& error) {
    warning = fmt::format("WARNING     a run here would stop: {}\n", error.what());
    return at::kCPU;
  }
}

// A card that is not here is not asked.
std::string kernel_line(const Settings& settings, const at::Device& device) {
  if (settings.device == DeviceChoice::kCuda && device.is_cpu()) return "";
  const auto would_stop = [](const std::exception& error) {
    return fmt::format("WARNING     a run here would stop: {}\n", error.what());
  };
  try {
    check_attention(settings, device);
    check_fp8(settings, device);
    return "";
  } catch (const BadInput& error) {
    return would_stop(error);
  } catch (const EnvironmentError& error) {
    return would_stop(error);
  }
}

// Of one rank: what TrainingRun would plan, but with the longest row that there is.
std::string memory_lines(RunPlan& plan, const at::Device& device, int64_t local_ranks) {
  const Settings& settings = plan.settings();
  const int64_t row = settings.packing ? settings.max_length : plan.train_summary().longest;
  const int64_t available = available_memory(device, local_ranks), world = plan.world_size();
  PlannedRun run =
      planned_run(plan.model(), settings, !device.is_cpu(), operator_threads(settings, local_ranks));
  run.tokens = settings.per_device_train_batch_size * row;
  const StageChoice choice = choose_zero_stage(run, world, available);
  const Sharded sharded{world, choice.stage, shard_group_size(settings, world)};
  const MemoryPlan memory = plan_memory(run, sharded, available);
  std::string parts;
  for (const auto& [name, bytes] : memory.items()) {
    if (bytes > 0) {
      parts +=
          fmt::format("{}{} {}", parts.empty() ? "" : ", ", name, format_bytes(static_cast<double>(bytes)));
    }
  }
  const bool several = world > 1;
  std::string text = several ? line("sharding", choice.reason) : "";
  text +=
      line("memory",
           fmt::format(
               "{}{} estimated ({}); {} available on {}{}", format_bytes(static_cast<double>(memory.total())),
               several ? " a rank" : "", parts, format_bytes(static_cast<double>(available)), device.str(),
               several && device.is_cpu() ? fmt::format(" for each of its {} ranks", local_ranks) : ""));
  const std::string warning = why_it_will_not_fit(run, sharded, available);
  if (!warning.empty()) text += line("WARNING", warning);
  return text;
}

// What the run would continue from; find_snapshot() and check_continuation() throw when it would refuse to.
std::string resume_line(RunPlan& plan, const at::Device& device) {
  const Settings& settings = plan.settings();
  if (settings.resume == "never") return line("resume", "never");
  const SnapshotStore store(std::filesystem::path(settings.output_dir) / kSnapshotFolder, posix_file_ops(),
                            SnapshotStore::Access::kLook);
  const auto snapshot = find_snapshot(settings, store);
  if (!snapshot) return line("resume", "nothing to take up: starts at step 0");
  check_continuation(*snapshot, plan, run_machine_json(device, {0, plan.world_size()}));
  return line("resume", "takes up " + snapshot->folder().string());
}

std::string example_lines(RunPlan& plan) {
  const StepPosition first = plan.position(0);
  const Batch batch = plan.train().make_batch(first.epoch, first.first_row, 1);
  const auto records = plan.train().record_numbers(first.epoch, first.first_row, 1);
  std::string text = fmt::format("\nexample: record {} as trained\n", records.at(0));
  for (const std::string& row : preview_lines(batch, 0, plan.tokenizer(), kPreviewTokens)) text += row + "\n";
  return text;
}

}  // namespace

std::string dry_run_report(RunPlan& plan, int64_t local_ranks) {
  check_output_folder(plan.settings());
  require_writable(plan.settings().output_dir);
  // The machine that a snapshot's is compared with has the run's threads.
  use_threads(plan.settings(), local_ranks);
  std::string warning;
  const at::Device device = device_of(plan.settings(), warning);
  return model_lines(plan) + data_lines(plan) + step_lines(plan) + disk_lines(plan) + warning +
         kernel_line(plan.settings(), device) + memory_lines(plan, device, local_ranks) +
         resume_line(plan, device) + example_lines(plan);
}

}  // namespace satune
