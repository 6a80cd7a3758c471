#include "trainer/final_export.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <system_error>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/files/json.h"
#include "data/template_file.h"
#include "model/export.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

/// ".NAME-new.tmp-PID" beside a folder: a name of ours, so that what a crash leaves goes at the next start.
fs::path temporary_beside(const fs::path& folder) {
  return folder.parent_path() / fmt::format(".{}-new.tmp-{}", folder.filename().string(), ::getpid());
}

/// Puts the folder `made` in the place of `target`; an earlier one is deleted. Where that fails `made` is.
void put_in_place(const fs::path& made, const fs::path& target) {
  std::error_code ignored;
  try {
    const fs::path replaced = replace_folder(made, target);
    if (!replaced.empty()) fs::remove_all(replaced, ignored);
  } catch (...) {
    fs::remove_all(made, ignored);
    throw;
  }
}

constexpr std::string_view kExportsFile = "exports.json";

/// exports.json of a run folder: {DIRECTORY NAME: {"step", "dtype"}}; empty where it is not there or not
/// ours.
Json read_exports(const fs::path& run_folder) {
  std::error_code error;
  if (!fs::exists(run_folder / kExportsFile, error)) return Json::object();
  try {
    Json exports = read_json_file(run_folder / kExportsFile);
    return exports.is_object() ? exports : Json::object();
  } catch (const BadInput&) {
    return Json::object();
  }
}

Json record_json(const ExportRecord& record) {
  return {{"step", record.step}, {"dtype", record.dtype}};
}

}  // namespace

DType export_dtype(const Settings& settings, const ModelConfig& config) {
  switch (settings.export_dtype) {
    case ExportDtype::kFloat32:
      return DType::kF32;
    case ExportDtype::kBfloat16:
      return DType::kBF16;
    case ExportDtype::kFloat16:
      return DType::kF16;
    case ExportDtype::kAuto:
      break;
  }
  return config.dtype;
}

ExportOptions export_options(const fs::path& base_model, const PromptTemplate& prompt_template,
                             const Tokenizer& tokenizer, bool plain_text) {
  ExportOptions options;
  options.tokenizer_source = base_model;
  if (plain_text) {
    if (const auto eos = tokenizer.eos_id()) options.eos_token_ids = {*eos};
    return options;
  }
  options.template_name = prompt_template.name();
  options.template_file = write_json(template_json(prompt_template));
  options.chat_template = prompt_template.chat_template(tokenizer);
  options.eos_token_ids = {prompt_template.end_id(tokenizer)};
  return options;
}

bool is_exported(const fs::path& directory, const ExportRecord& record) {
  std::error_code error;
  const Json exports = read_exports(directory.parent_path());
  const std::string name = directory.filename().string();
  return fs::exists(directory, error) && exports.contains(name) && exports.at(name) == record_json(record);
}

void export_run(const fs::path& directory, RunPlan& plan, const SnapshotReader& snapshot,
                const ExportRecord& record, FileOps& ops) {
  const bool plain_text = plan.train().dataset().cache().format() == DataFormat::kText;
  const ExportOptions options =
      export_options(plan.model_directory(), plan.prompt_template(), plan.tokenizer(), plain_text);
  const fs::path made = temporary_beside(directory);
  std::error_code ignored;
  fs::remove_all(made, ignored);  // of a dead process that had our id
  export_pieces(
      made, plan.config(), plan.table(),
      [&](size_t tensor, int64_t begin, int64_t count) { return snapshot.elements(tensor, begin, count); },
      export_dtype(plan.settings(), plan.config()), options, ops);
  put_in_place(made, directory);
  Json exports = read_exports(directory.parent_path());
  exports[directory.filename().string()] = record_json(record);
  write_file_atomic(directory.parent_path() / kExportsFile, write_json(exports), ops);
}

}  // namespace satune
