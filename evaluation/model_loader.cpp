#include "evaluation/model_loader.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "data/template_file.h"
#include "model/files/hf_directory.h"

namespace satune {
namespace {

at::ScalarType choose_type(std::string_view precision, DType stored) {
  if (precision == "fp32") return at::kFloat;
  if (precision == "bf16") return at::kBFloat16;
  if (precision == "auto") return stored == DType::kBF16 ? at::kBFloat16 : at::kFloat;
  throw bad_input("--precision", fmt::format("\"{}\"", precision), "auto, fp32 or bf16");
}

}  // namespace

bool adopt_sharing(ModelConfig& config, SharingPlan asked, std::string_view key, std::string_view source) {
  if (config.sharing.empty()) {
    config.sharing = std::move(asked);
    return true;
  }
  if (asked != config.sharing) {
    throw bad_input(
        key, describe_sharing(asked),
        fmt::format("{}, the plan of {} (or no {})", describe_sharing(config.sharing), source, key));
  }
  return false;
}

bool settle_sharing(ModelConfig& config, std::string_view layers, const std::optional<std::string>& anchor,
                    std::string_view source) {
  if (layers.empty()) {
    if (anchor) throw bad_input("--anchor " + *anchor, "no --sharing", "--sharing LAYERS beside it");
    return false;
  }
  constexpr std::string_view kOption = "--sharing";
  const AnchorRule rule = anchor ? parse_anchor_rule(*anchor) : AnchorRule::kBefore;
  const auto own_layers = static_cast<int>(config.num_hidden_layers);
  return adopt_sharing(config, SharingPlan::parse(layers, rule, own_layers, kOption), kOption, source);
}

ModelSource find_model(const ModelRequest& request) {
  ModelSource source;
  source.directory = resolve_model_directory(request.name_or_path);
  source.config = read_model_config(source.directory);
  source.dense_source =
      settle_sharing(source.config, request.sharing, request.anchor, source.directory.string());
  source.type = choose_type(request.precision, source.config.dtype);
  source.device = request.device;
  return source;
}

Llama load_model(const ModelSource& source) {
  const Checkpoint checkpoint(source.directory);
  check_checkpoint(checkpoint, TensorTable(source.config), source.dense_source);  // before memory is taken
  Llama model(source.config, {}, source.type, source.device);
  load_weights(model.weights(), checkpoint, source.dense_source);
  return model;
}

void check_vocabulary(const Tokenizer& tokenizer, std::string_view tokenizer_source, int64_t vocab_size,
                      std::string_view limit) {
  if (tokenizer.vocab_size() <= vocab_size) return;
  throw bad_input(fmt::format("{}: tokenizer", tokenizer_source),
                  fmt::format("{} ids", tokenizer.vocab_size()),
                  fmt::format("at most {}, {}", vocab_size, limit));
}

std::unique_ptr<Tokenizer> load_model_tokenizer(const std::filesystem::path& directory,
                                                const ModelConfig& config) {
  std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(directory);
  check_vocabulary(*tokenizer, directory.string(), config.vocab_size, "the vocab_size of its config.json");
  return tokenizer;
}

std::optional<PromptTemplate> recorded_template(const std::filesystem::path& directory) {
  const std::filesystem::path strings = directory / kTemplateFile;
  if (file_exists(strings)) return parse_template(read_json_file(strings), strings.string());
  const std::filesystem::path path = directory / "generation_config.json";
  if (!file_exists(path)) return std::nullopt;
  const Json json = read_json_file(path);
  if (!json.is_object() || !json.contains("satune_template")) return std::nullopt;
  const std::string where = path.string() + ": satune_template";
  if (!json["satune_template"].is_string())
    throw bad_input(where, describe_json(&json["satune_template"]), "a string");
  const auto name = json["satune_template"].get<std::string>();
  if (!built_in_template(name) && !file_exists(name))
    throw bad_input(where, quote_json(name) + ", a template file that is not there",
                    "that file, or --template with one that says the same");
  return PromptTemplate::load(name);
}

PromptTemplate load_model_template(const ModelSource& source, const std::optional<std::string>& name,
                                   const Tokenizer& tokenizer) {
  std::optional<PromptTemplate> prompt_template =
      name ? PromptTemplate::load(*name) : recorded_template(source.directory);
  if (!prompt_template) prompt_template = PromptTemplate::load("alpaca");
  prompt_template->check(tokenizer);
  return *prompt_template;
}

std::string_view precision_name(at::ScalarType type) {
  return type == at::kBFloat16 ? "bf16" : "fp32";
}

}  // namespace satune
