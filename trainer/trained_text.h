// How a run's records became text: what state.json keeps of it, so that an export means the same when the
// template file or the training data are gone or have changed.
#pragma once

#include "data/files/json.h"
#include "data/prompt_template.h"
#include "data/records.h"
#include "trainer/run_plan.h"
#include "trainer/snapshot_reader.h"

namespace satune {

struct TrainedText {
  DataFormat format = DataFormat::kAlpaca;
  PromptTemplate prompt_template;  ///< plain text (DataFormat::kText) has none: then it says nothing
};

TrainedText trained_text(RunPlan& plan);

/// Adds `data_format` ("alpaca" | "text") and `template` (as template_json() writes it) to a state.json.
void add_trained_text(Json& state, const TrainedText& text);

/// The same from a snapshot. Snapshots of older builds have neither key: their template is loaded by the name
/// in the settings, and their format asked of the training file while that is there. Throws BadInput that
/// names state.json and the key.
TrainedText read_trained_text(const SnapshotReader& snapshot);

/// The work of read_trained_text(); `source` names `state` in errors.
TrainedText parse_trained_text(const Json& state, const Settings& settings, const std::string& source);

}  // namespace satune
