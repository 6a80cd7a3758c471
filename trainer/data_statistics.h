// data.json of a run folder: what the run trains and evaluates on, counted once, for pages about it.
#pragma once

#include <filesystem>

#include "data/files/atomic_file.h"
#include "trainer/run_plan.h"

namespace satune {

/// Of the tokens and targets, whatever their order: {"train": ..., "eval": null where nothing is held out}.
/// What runs of several seeds have in common; kept in data.json and in snapshots for satune compare.
Json text_fingerprints(RunPlan& plan);

/// Counts, drops, lengths of samples and of their targets (histograms {"bin_width", "counts"}), rows of the
/// first epoch and how full they are, for "train" and "eval" (null where nothing is held out); template,
/// tokenizer, text_fingerprints(), total_steps and rows_per_step.
Json data_statistics(RunPlan& plan);

/// Writes them to <run_folder>/data.json in place of an older one. What fails is warned about: no run ends
/// for it. (But what a FileOps throws by itself passes through: a disk that does not answer.)
void write_data_statistics(RunPlan& plan, const std::filesystem::path& run_folder, FileOps& ops);

}  // namespace satune
