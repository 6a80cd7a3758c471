// Running the tasks of `satune eval` over one model under one or several sharing plans.
#pragma once

#include <string>
#include <vector>

#include "data/files/json.h"
#include "evaluation/item_store.h"
#include "trainer/commands/eval_ranks.h"
#include "trainer/commands/eval_tasks.h"

namespace satune {

/// Tokens of a forward pass with --batch-size auto: a quarter of the memory that is free, but no more than
/// fills the device. Ranks of one machine divide its memory.
int64_t automatic_batch_tokens(const ModelSource& source, int64_t local_ranks);

/// Tokens in the KV caches of texts that are generated together: as many as fit another quarter.
int64_t automatic_cache_tokens(const ModelSource& source, int64_t local_ranks);

/// What kept results depend on: config, the weight files' names, sizes and times, tokenizer, precision,
/// device.
std::string model_fingerprint(const ModelSource& source, const Tokenizer& tokenizer);

/// What all ranks must have in common: tasks and what they are made of, model, precision, device, plans.
Json common_ground(const ModelSource& source, const EvalTasks& tasks, const std::vector<SharingPlan>& plans);

/// Plans of --sweep "23-26;27-30;none" ("none" = without sharing), under the anchor rule of the model's
/// options. Throws BadInput for a bad plan, for one that stands twice, and for a model that shares already.
std::vector<SharingPlan> parse_sweep(const EvalOptions& options, const ModelSource& source);

/// Loads the weights once and runs all tasks under every plan; without plans, as the source says. Items whose
/// results are in the store are not computed again. Returns one report a plan: {"tasks",
/// "fingerprints" (eval_fingerprints.h), "seconds", "tokens_per_s", "peak_memory_bytes", "parameters",
/// "kv_cache_bytes_per_token", "precision", "sharing", "anchor"}; ranks other than 0 return reports without
/// metrics. peak_memory_bytes is that of the whole process so far; of several plans each has its own, which
/// begins with what lies there when the plan does, and none where the kernel keeps only the highest of all.
std::vector<Json> run_eval_tasks(const ModelSource& source, const EvalTasks& tasks,
                                 const std::vector<SharingPlan>& plans, ItemStore& store, EvalRanks& ranks);

}  // namespace satune
