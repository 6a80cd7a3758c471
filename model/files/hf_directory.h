// Hugging Face model directories: finding one, and what surrounds the weights when one is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/atomic_file.h"
#include "model/files/model_config.h"
#include "model/files/safetensors.h"
#include "model/files/tensor_table.h"

namespace satune {

/// A path to a directory with config.json, or a hub id ("meta-llama/Meta-Llama-3-8B") resolved in the local
/// Hugging Face cache (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, ~/.cache/huggingface; refs/main, else the
/// newest snapshot). Never touches the network. Throws BadInput that says what to run when it is absent.
std::filesystem::path resolve_model_directory(const std::string& name_or_path);

/// Reads config.json (and generation_config.json's eos where config.json has none).
ModelConfig read_model_config(const std::filesystem::path& directory);

/// eos_token_id of the directory's generation_config.json: one id or a list; empty where there is none.
std::vector<int64_t> generation_config_eos(const std::filesystem::path& directory);

/// Checks a checkpoint against the table: every tensor there with its shape and a floating dtype. Tensors
/// in the file but not in the table are an error, save those known to be droppable (rotary_emb.inv_freq;
/// lm_head.weight of a tied model; q_proj and k_proj of shared layers when `dense_source`). Returns the
/// names that are skipped, for one log line. Throws BadInput naming file, tensor, found and expected.
std::vector<std::string> check_checkpoint(const Checkpoint& checkpoint, const TensorTable& table,
                                          bool dense_source);

/// Beside config.json: the prompt template that the model was trained with, as a template file.
inline constexpr std::string_view kTemplateFile = "satune_template.json";

struct ExportOptions {
  std::filesystem::path tokenizer_source;    ///< directory whose tokenizer files are copied; may be empty
  std::string template_name;                 ///< of generation_config.json, for people; "" = none
  std::optional<std::string> template_file;  ///< text of kTemplateFile: the template's strings
  std::optional<std::string> chat_template;  ///< text of chat_template.jinja
  std::vector<int64_t> eos_token_ids;        ///< of generation_config.json: the EOS trained
  uint64_t max_shard_bytes = 5'000'000'000;
};

/// Everything of an exported directory but the weights: config.json, generation_config.json, tokenizer files,
/// chat_template.jinja, satune_template.json, and for a sharing plan the two Python files. Written into
/// `directory` (which the caller makes atomic).
void write_export_files(const std::filesystem::path& directory, const ModelConfig& config,
                        const ExportOptions& options, FileOps& ops = posix_file_ops());

/// Cuts the table into shards of at most max_shard_bytes, in table order (tied tensors once). One shard is
/// "model.safetensors"; several are "model-0000i-of-0000N.safetensors" with an index.
struct ExportShard {
  std::string file_name;
  std::vector<TensorSpec> tensors;
};
std::vector<ExportShard> plan_export_shards(const TensorTable& table, DType dtype, uint64_t max_shard_bytes);

/// model.safetensors.index.json; nothing for a single shard.
void write_export_index(const std::filesystem::path& directory, const std::vector<ExportShard>& shards,
                        FileOps& ops = posix_file_ops());

}  // namespace satune
