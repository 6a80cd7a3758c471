#include "trainer/metrics.h"

#include <spdlog/spdlog.h>

#include <set>
#include <utility>
#include <vector>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "trainer/append_file.h"
#include "trainer/event_file.h"

namespace satune {
namespace {

constexpr const char* kMetricsFile = "metrics.jsonl";
constexpr const char* kEventFolder = "tensorboard";

// Step of a row, or -1 for a line that is none.
int64_t row_step(std::string_view line) {
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) return -1;
  return row["step"].get<int64_t>();
}

std::vector<std::pair<std::string_view, double>> scalars_of(const StepMetrics& m) {
  std::vector<std::pair<std::string_view, double>> scalars = {
      {"train/loss", m.loss},
      {"train/grad_norm", m.grad_norm},
      {"train/learning_rate", m.learning_rate},
      {"train/epoch", m.epoch},
      {"train/num_tokens", static_cast<double>(m.num_tokens)},
      {"train/mean_token_accuracy", m.mean_token_accuracy},
      {"speed/tokens_per_s", m.tokens_per_s},
      {"speed/step_seconds", m.step_seconds},
      {"machine/peak_memory_bytes", static_cast<double>(m.peak_memory_bytes)},
  };
  const auto add = [&](std::string_view tag, const std::optional<double>& value) {
    if (value) scalars.emplace_back(tag, *value);
  };
  add("speed/mfu", m.mfu);
  add("eval/loss", m.eval_loss);
  add("sent/reduced_bytes", m.sent_reduced_bytes);
  add("sent/gathered_bytes", m.sent_gathered_bytes);
  add("sent/other_bytes", m.sent_other_bytes);
  add("machine/device_power_w", m.device_power_w);
  add("machine/device_temperature_c", m.device_temperature_c);
  add("machine/device_utilisation", m.device_utilisation);
  return scalars;
}

}  // namespace

std::string metrics_row(const StepMetrics& m) {
  Json row = {{"step", m.step},
              {"loss", m.loss},
              {"grad_norm", m.grad_norm},
              {"learning_rate", m.learning_rate},
              {"epoch", m.epoch},
              {"num_tokens", m.num_tokens},
              {"mean_token_accuracy", m.mean_token_accuracy},
              {"tokens_per_s", m.tokens_per_s},
              {"mfu", m.mfu ? Json(*m.mfu) : Json(nullptr)},
              {"peak_memory_bytes", m.peak_memory_bytes},
              {"step_seconds", m.step_seconds}};
  const auto add = [&](const char* key, const std::optional<double>& value) {
    if (value) row[key] = *value;
  };
  add("eval_loss", m.eval_loss);
  add("sent_reduced_bytes", m.sent_reduced_bytes);
  add("sent_gathered_bytes", m.sent_gathered_bytes);
  add("sent_other_bytes", m.sent_other_bytes);
  add("device_power_w", m.device_power_w);
  add("device_temperature_c", m.device_temperature_c);
  add("device_utilisation", m.device_utilisation);
  return row.dump();  // numbers that are not finite come out as null
}

int64_t cut_metrics(const std::filesystem::path& file, int64_t last_step, FileOps& ops) {
  if (!std::filesystem::exists(file)) return 0;
  const std::string text = read_text_file(file);
  std::string kept;
  std::set<int64_t> steps;
  for (size_t begin = 0; begin < text.size();) {
    const size_t newline = text.find('\n', begin);
    const size_t end = newline == std::string::npos ? text.size() : newline;
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    const int64_t step = newline == std::string::npos ? -1 : row_step(line);
    if (step >= 1 && step <= last_step && steps.insert(step).second) kept.append(line).push_back('\n');
    begin = end + 1;
  }
  if (kept != text) write_file_atomic(file, kept, ops);
  return static_cast<int64_t>(steps.size());
}

MetricsLog::MetricsLog(const std::filesystem::path& run_folder, int64_t last_step, FileOps& ops) {
  const std::filesystem::path file = run_folder / kMetricsFile;
  try {
    const int64_t rows = cut_metrics(file, last_step, ops);
    if (rows < last_step)
      spdlog::warn("{}: found rows of {} of the {} steps before; the run goes on without the others",
                   file.string(), rows, last_step);
    rows_ = std::make_unique<AppendFile>(file, ops);
  } catch (const std::exception& error) {
    spdlog::warn("{}: cannot cut the rows after step {} ({}); the run goes on without it", file.string(),
                 last_step, error.what());
  }
  events_ = std::make_unique<EventFile>(run_folder / kEventFolder, last_step, ops);
}

MetricsLog::~MetricsLog() = default;

void MetricsLog::record(const StepMetrics& metrics) {
  if (rows_) rows_->append(metrics_row(metrics) + "\n");
  events_->write_scalars(metrics.step, scalars_of(metrics));
}

}  // namespace satune
