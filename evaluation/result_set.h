// One side of a comparison: a report of `satune eval --output`, one plan of a sweep, or a run folder.
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

struct TaskResults {
  Json metrics;  ///< {metric: value, metric_stderr: ..., "n": items}
  /// By fingerprint, those that are complete (as many as "n"); empty where the report has no items file.
  std::map<std::string, ItemResults> items;
};

struct ResultSet {
  std::string name;                          ///< what the user gave; with the plan, for one of a sweep
  std::map<std::string, TaskResults> tasks;  ///< a run folder has one, "training"
  /// Of the whole: tokens_per_s, peak_memory_bytes, parameters, kv_cache_bytes_per_token, seconds and other
  /// numbers beside "tasks", in the file's order.
  Json measurements = Json::object();
  std::optional<std::string> data_fingerprint;  ///< of a run folder: what it trained on
  std::string sharing;
};

/// Reads "X.json" with its items file, or a run folder: the last loss and eval_loss, medians of tokens_per_s,
/// step_seconds and mfu, the highest peak_memory_bytes of metrics.jsonl, and the data fingerprint of the
/// newest snapshot. A sweep gives one set for each plan, in its order. Throws BadInput that names file and
/// key.
std::vector<ResultSet> read_results(const std::filesystem::path& path);

}  // namespace satune
