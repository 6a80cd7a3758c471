// From what a command line says about a model to the model: directory, sharing plan, precision.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "model/llama.h"

namespace satune {

/// The options that the commands over a model share, as given.
struct ModelRequest {
  std::string name_or_path = {};
  std::string sharing = {};                          ///< "23-26"; "" = the checkpoint's own plan
  std::optional<std::string> anchor = std::nullopt;  ///< "before" | "first"; only with `sharing`
  std::string precision = "auto";  ///< "fp32" | "bf16"; auto: bf16 for a bf16 checkpoint, else fp32
  at::Device device = at::kCPU;
};

/// A checkpoint whose config is read and whose plan is settled; no weights yet.
struct ModelSource {
  std::filesystem::path directory;
  ModelConfig config;         ///< with the plan to use
  bool dense_source = false;  ///< sharing comes from the command line: q and k of shared layers are left out
  at::ScalarType type = at::kFloat;
  at::Device device = at::kCPU;
};

/// Throws BadInput for a missing model, a bad plan, a plan that contradicts the exported one, an anchor
/// without sharing, an unknown precision.
ModelSource find_model(const ModelRequest& request);

/// Gives `config` the plan that somebody asks for: a dense model takes it, one that was exported with a plan
/// must have the same. Returns whether the checkpoint is a dense one that has q and k for layers that share
/// now. `key`: what asks, `source`: whose config it is. Throws BadInput naming both plans.
bool adopt_sharing(ModelConfig& config, SharingPlan asked, std::string_view key, std::string_view source);

/// The same for --sharing and --anchor of a command line; empty `layers` keep the checkpoint's plan.
bool settle_sharing(ModelConfig& config, std::string_view layers, const std::optional<std::string>& anchor,
                    std::string_view source);

/// Loads the weights once, streamed, in source.type. Logs what is skipped.
Llama load_model(const ModelSource& source);

/// Throws BadInput when the tokenizer has more ids than `vocab_size`, which `limit` names.
void check_vocabulary(const Tokenizer& tokenizer, std::string_view tokenizer_source, int64_t vocab_size,
                      std::string_view limit);

/// The directory's tokenizer, checked against the vocabulary of its config.
std::unique_ptr<Tokenizer> load_model_tokenizer(const std::filesystem::path& directory,
                                                const ModelConfig& config);

/// The template of that name or file; without one, the template that an exported model was trained with,
/// else "alpaca". Throws BadInput, also where the tokenizer lacks a token that the template emits.
PromptTemplate load_model_template(const ModelSource& source, const std::optional<std::string>& name,
                                   const Tokenizer& tokenizer);

/// What an exported directory was trained with: the strings in its satune_template.json; for exports that
/// have none, the name in generation_config.json (satune_template). Nothing for other models. Throws BadInput
/// that names the file and, for a template file that is not there, what to do.
std::optional<PromptTemplate> recorded_template(const std::filesystem::path& directory);

/// "fp32" or "bf16".
std::string_view precision_name(at::ScalarType type);

}  // namespace satune
