#include "trainer/final_export.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <system_error>

#include "data/files/error.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

/// An earlier export under a temporary name, so that a crash before its deletion leaves nothing behind for
/// long; deleted when the new one is there.
class ReplacedFolder {
 public:
  explicit ReplacedFolder(const fs::path& folder)
      : aside_(folder.parent_path() / fmt::format(".{}.tmp-{}-old", folder.filename().string(), ::getpid())) {
    std::error_code error;
    if (!fs::exists(folder, error)) return;
    fs::rename(folder, aside_, error);
    if (error) {
      throw EnvironmentError(fmt::format("{}: cannot be replaced: {}", folder.string(), error.message()));
    }
  }
  ~ReplacedFolder() {
    std::error_code ignored;
    fs::remove_all(aside_, ignored);
  }
  ReplacedFolder(const ReplacedFolder&) = delete;
  ReplacedFolder& operator=(const ReplacedFolder&) = delete;

 private:
  fs::path aside_;
};

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
  options.chat_template = prompt_template.chat_template(tokenizer);
  options.eos_token_ids = {prompt_template.end_id(tokenizer)};
  return options;
}

void export_run(const fs::path& directory, RunPlan& plan, const Llama& model, const AdamW& optimizer) {
  const bool plain_text = plan.train().dataset().cache().format() == DataFormat::kText;
  const ExportOptions options =
      export_options(plan.model_directory(), plan.prompt_template(), plan.tokenizer(), plain_text);
  const ReplacedFolder earlier(directory);
  export_model(
      directory, model.config(), model.table(),
      [&](size_t i) {
        return optimizer.weights().selected(i) ? optimizer.master(i) : model.weights().tensor(i);
      },
      export_dtype(plan.settings(), plan.config()), options);
}

}  // namespace satune
