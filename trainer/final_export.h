// The exported Hugging Face directory of a run, from the optimizer's master weights.
#pragma once

#include <filesystem>

#include "model/files/hf_directory.h"
#include "model/llama.h"
#include "trainer/adamw.h"
#include "trainer/run_plan.h"

namespace satune {

/// `export_dtype`; "auto" is the dtype of the loaded checkpoint.
DType export_dtype(const Settings& settings, const ModelConfig& config);

/// Tokenizer files of the base model, the training template as chat template (none for plain text), and the
/// token that ended responses in training as EOS. What `satune export` and the export of a run share.
ExportOptions export_options(const std::filesystem::path& base_model, const PromptTemplate& prompt_template,
                             const Tokenizer& tokenizer, bool plain_text);

/// Writes `directory`, replacing an earlier export of this run. Throws EnvironmentError.
void export_run(const std::filesystem::path& directory, RunPlan& plan, const Llama& model,
                const AdamW& optimizer);

}  // namespace satune
