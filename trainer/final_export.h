// A model directory that transformers loads, out of a snapshot.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "data/files/atomic_file.h"
#include "model/files/hf_directory.h"
#include "trainer/run_plan.h"
#include "trainer/snapshot_reader.h"

namespace satune {

/// `export_dtype`; "auto" is the dtype of the loaded checkpoint.
DType export_dtype(const Settings& settings, const ModelConfig& config);

/// Tokenizer files of the base model, the training template as chat template (none for plain text), and the
/// token that ended responses in training as EOS. What `satune export` and the export of a run share.
ExportOptions export_options(const std::filesystem::path& base_model, const PromptTemplate& prompt_template,
                             const Tokenizer& tokenizer, bool plain_text);

/// Which state an export holds, kept beside it in exports.json of the run folder.
struct ExportRecord {
  int64_t step = 0;
  std::string dtype;
  bool operator==(const ExportRecord&) const = default;
};

/// `directory` is there and holds the state of `record`.
bool is_exported(const std::filesystem::path& directory, const ExportRecord& record);

/// Writes `directory`, replacing an earlier export of this run, which stays when writing fails. The weights
/// are streamed from the snapshot, whatever layout it was written on: no process holds the model for it.
/// `ops`: for all that is written. Throws EnvironmentError.
void export_run(const std::filesystem::path& directory, RunPlan& plan, const SnapshotReader& snapshot,
                const ExportRecord& record, FileOps& ops);

}  // namespace satune
