#include "trainer/final_export.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <system_error>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/template_file.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

/// An earlier export out of the way: brought back when the new one does not come, deleted when it is there.
/// Its name is that of a temporary folder of ours, so that what a crash leaves is removed at the next start.
class ReplacedFolder {
 public:
  explicit ReplacedFolder(const fs::path& folder)
      : folder_(folder),
        aside_(folder.parent_path() / fmt::format(".{}-old.tmp-{}", folder.filename().string(), ::getpid())) {
    std::error_code error;
    if (!fs::exists(folder, error)) return;
    fs::rename(folder, aside_, error);
    if (error) {
      throw EnvironmentError(fmt::format("{}: cannot be replaced: {}", folder.string(), error.message()));
    }
  }
  ~ReplacedFolder() {
    std::error_code ignored;
    if (fs::exists(folder_, ignored)) {
      fs::remove_all(aside_, ignored);
    } else {
      fs::rename(aside_, folder_, ignored);
    }
  }
  ReplacedFolder(const ReplacedFolder&) = delete;
  ReplacedFolder& operator=(const ReplacedFolder&) = delete;

 private:
  fs::path folder_, aside_;
};

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
                const ExportRecord& record) {
  const bool plain_text = plan.train().dataset().cache().format() == DataFormat::kText;
  const ExportOptions options =
      export_options(plan.model_directory(), plan.prompt_template(), plan.tokenizer(), plain_text);
  {
    const ReplacedFolder earlier(directory);
    export_model(
        directory, plan.config(), plan.table(), [&](size_t i) { return snapshot.tensor(i); },
        export_dtype(plan.settings(), plan.config()), options);
  }
  Json exports = read_exports(directory.parent_path());
  exports[directory.filename().string()] = record_json(record);
  write_file_atomic(directory.parent_path() / kExportsFile, write_json(exports));
}

}  // namespace satune
