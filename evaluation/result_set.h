// One side of a comparison: a report of `satune eval --output`, one plan of a sweep, what `satune generate
// --json` printed or `--prompts` wrote, or a run folder.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"

namespace satune {

/// Results of single items of one task under one fingerprint, by item.
using ItemResults = std::map<int64_t, Json>;

/// What a task was measured on, as the report tells it: tasks of equal fingerprints are the same questions. A
/// part is "" where the task has none or the report says nothing.
struct TaskFingerprints {
  std::string items;                         ///< every token, target and rule of the task
  std::string data, prompt_form, tokenizer;  ///< where they come from, to say why they differ
  bool told = false;  ///< by the report: then a part that is "" is one that the task does not have
};

struct TaskResults {
  Json metrics;  ///< {metric: value, metric_stderr: ..., "n": items}
  TaskFingerprints fingerprints;
  /// Of the report's fingerprint; of a report that tells none, those of the only fingerprint with as many as
  /// "n" ("windows", where n counts pages). Empty where the report has no items file, and where some are
  /// missing.
  ItemResults items;
};

struct ResultSet {
  std::string name;                          ///< what the user gave; with the plan, for one of a sweep
  std::map<std::string, TaskResults> tasks;  ///< a run folder has one, "training"
  /// Of the whole: tokens_per_s, peak_memory_bytes, parameters, kv_cache_bytes_per_token, seconds and other
  /// numbers beside "tasks", in the file's order; for an answer of generate also time_per_token_s, of the
  /// tokens after the first. Of a file of answers each is the mean over those that have it. Of a run folder:
  /// see read_results().
  Json measurements = Json::object();
  std::map<std::string, double> measurement_errors;  ///< of means over answers that are not all equal
  ItemResults answers;  ///< the numbers of each of a file's answers, by its prompt's number
  /// Of a run folder: fingerprints of the tokens and targets that it was trained ("train") and evaluated
  /// ("eval") on, whatever their order; those that its newest snapshot tells, or data.json where none is
  /// left.
  std::map<std::string, std::string> texts;
  std::map<std::string, int64_t> steps;  ///< of a run folder: of which step its "loss" and "eval_loss" are
  /// Of generate's reports, which have no tasks, by the prompt's number in its file; 1 where it has none.
  std::map<int64_t, std::string> prompts;
  std::string sharing, precision;  ///< "" where not told
};

/// A number of a task that is a result; of a part of it (MMLU's subjects) "subjects.anatomy.acc".
struct Metric {
  std::string name;
  double value = 0;  ///< NaN where the report has null
  std::optional<double> standard_error = {};
};

/// The results among a task's metrics, in their order: no counts of items, no standard errors.
std::vector<Metric> result_metrics(const Json& metrics);

/// Reads "X.json" with its items file, JSONL of `satune generate --prompts`, or a run folder: the last loss
/// and eval_loss (null = not a number), medians of tokens_per_s, step_seconds, mfu and device_power_w, the
/// highest peak_memory_bytes, device_energy_joules = sum of device_power_w * step_seconds over the rows that
/// have both (rank 0's card, its power taken once a step), and device_energy_joules_per_token where no other
/// ranks took part; the texts of the newest snapshot. A sweep gives one set for each plan, in its order.
/// Throws BadInput that names file and key.
std::vector<ResultSet> read_results(const std::filesystem::path& path);

}  // namespace satune
