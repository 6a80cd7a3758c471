// satune share: Shared Attention over a dense model's layers, without training.
#include <ATen/ATen.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>

#include "data/files/error.h"
#include "data/template_file.h"
#include "evaluation/generation.h"
#include "model/export.h"
#include "model/files/stored_dtype.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"

namespace satune {
namespace {

struct ShareOptions {
  std::string model, out, sharing;
  std::optional<std::string> anchor, dtype;
};

/// The dtype that holds every tensor without loss: the common one, or where they differ the widest (fp32 for
/// a mixture of F16 and BF16).
DType widest_dtype(const Checkpoint& checkpoint, const TensorTable& table) {
  std::optional<DType> widest;
  for (const TensorInfo& info : table.tensors()) {
    const DType dtype = dtype_of(*checkpoint.find(info.name));
    if (!widest || *widest == dtype) {
      widest = dtype;
    } else if (dtype_bytes(dtype) == dtype_bytes(*widest)) {
      widest = DType::kF32;
    } else if (dtype_bytes(dtype) > dtype_bytes(*widest)) {
      widest = dtype;
    }
  }
  return *widest;
}

int run_share(const ShareOptions& options) {
  require_new_directory(options.out);
  const std::filesystem::path directory = resolve_model_directory(options.model);
  ModelConfig config = read_model_config(directory);
  const bool dense_source = settle_sharing(config, options.sharing, options.anchor, directory.string());
  const Checkpoint checkpoint(directory);
  const TensorTable table(config);
  const std::vector<std::string> skipped = check_checkpoint(checkpoint, table, dense_source);
  const DType dtype = options.dtype ? parse_export_dtype(*options.dtype) : widest_dtype(checkpoint, table);

  std::optional<StoredTensor> in_use;
  const auto read = [&](size_t tensor, int64_t begin, int64_t count) {
    if (in_use) checkpoint.release(*in_use);
    in_use = *checkpoint.find(table.tensors()[tensor].name);
    const DType stored = dtype_of(*in_use);
    in_use->bytes = in_use->bytes.subspan(static_cast<size_t>(begin * dtype_bytes(stored)),
                                          static_cast<size_t>(count * dtype_bytes(stored)));
    // from_blob wants a mutable pointer; the map is read-only and is only read.
    return at::from_blob(const_cast<std::byte*>(in_use->bytes.data()), {count},
                         at::TensorOptions(scalar_type(stored)));
  };
  ExportOptions export_options;
  export_options.tokenizer_source = directory;
  if (const auto trained_with = recorded_template(directory)) {
    export_options.template_name = trained_with->name();
    export_options.template_file = write_json(template_json(*trained_with));
  }
  export_options.eos_token_ids = eos_token_ids(directory, config);
  export_pieces(options.out, config, table, read, dtype, export_options);
  spdlog::info("{}: {} parameters in {}, {} of {} layers share attention, {} tensors left out", options.out,
               table.parameter_count(), torch_name(dtype), config.sharing.num_shared(),
               config.num_hidden_layers, skipped.size());
  return kExitOk;
}

}  // namespace

void add_share_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ShareOptions>();
  CLI::App* command = app.add_subcommand("share", "Apply Shared Attention to a model without training");
  command->add_option("model", options->model, "Hugging Face directory, or a hub id in the local cache")
      ->required();
  command->add_option("out", options->out, "New or empty folder for the result")->required();
  add_sharing_options(*command, options->sharing, options->anchor);
  command->add_option("--dtype", options->dtype,
                      "float32 | bfloat16 | float16 (default: as stored, byte for byte)");
  command->footer(
      "Writes a Hugging Face directory without q_proj and k_proj of the layers that share; every other "
      "tensor is\n"
      "copied byte for byte. Without --sharing it copies the model.\n"
      "Examples:\n"
      "  satune share meta-llama/Meta-Llama-3-8B llama3-8b-sa --sharing 23-26\n"
      "  satune share MODEL OUT --sharing 10-12,23-26 --anchor first");
  command->callback([options, &exit_code] { exit_code = run_share(*options); });
}

}  // namespace satune
