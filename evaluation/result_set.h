// One side of a comparison: a report of `satune eval --output`, one plan of a sweep, what `satune generate
// --json` printed, or a run folder.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"

namespace satune {

/// Results of single items of one task under one fingerprint (of data, template and tokenizer), by item.
using ItemResults = std::map<int64_t, Json>;

struct ItemValue {
  double value = 0, weight = 1;
};

/// A metric in an item's result: a loss weighs as much as the item's tokens, all else 1. Nothing where the
/// result has no number under that name.
std::optional<ItemValue> item_value(const Json& result, const std::string& metric);

struct TaskResults {
  Json metrics;  ///< {metric: value, metric_stderr: ..., "n": items}
  /// By fingerprint, those that are complete (as many as "n"); empty where the report has no items file. A
  /// file also keeps what earlier runs found on other data: of several, those whose means are the metrics.
  std::map<std::string, ItemResults> items;
};

struct ResultSet {
  std::string name;                          ///< what the user gave; with the plan, for one of a sweep
  std::map<std::string, TaskResults> tasks;  ///< a run folder has one, "training"
  /// Of the whole: tokens_per_s, peak_memory_bytes, parameters, kv_cache_bytes_per_token, seconds and other
  /// numbers beside "tasks", in the file's order.
  Json measurements = Json::object();
  /// Of a run folder: fingerprints of the tokens and targets that it was trained ("train") and evaluated
  /// ("eval") on, whatever their order; those that its newest snapshot tells.
  std::map<std::string, std::string> texts;
  std::optional<std::string> prompt;  ///< of generate's report, which has no tasks
  std::string sharing;
};

/// Reads "X.json" with its items file, or a run folder: the last loss and eval_loss, medians of tokens_per_s,
/// step_seconds, mfu and device_power_w, the highest peak_memory_bytes of metrics.jsonl (a loss of null
/// is not a number), and the texts of the newest snapshot. A sweep gives one set for each plan, in its order.
/// Throws BadInput that names file and key.
std::vector<ResultSet> read_results(const std::filesystem::path& path);

}  // namespace satune
