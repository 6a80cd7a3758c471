// satune init: a fresh random checkpoint, with a tokenizer that is copied or trained.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "data/files/error.h"
#include "data/prompt_template.h"
#include "data/records.h"
#include "evaluation/model_loader.h"
#include "model/parameters.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/number_checks.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kDefaultTrainedVocabulary = 512;

struct InitOptions {
  std::string architecture, out, sharing;
  std::optional<std::string> anchor, dtype, tokenizer, train_tokenizer, template_name;
  std::optional<int64_t> vocab_size;
  uint64_t seed = 42;
};

/// A folder for the trained tokenizer until the export copies it.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::error_code error;
    const fs::path parent = fs::temp_directory_path(error);
    if (error) {
      const char* variable = std::getenv("TMPDIR");
      throw EnvironmentError(fmt::format("TMPDIR: found {} ({}), expected a folder for temporary files",
                                         variable ? variable : "none", error.message()));
    }
    std::string pattern = (parent / "satune-tokenizer-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw EnvironmentError(fmt::format("{}: the folder cannot be made: {}", pattern, std::strerror(errno)));
    }
    path_ = pattern;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// What the tokenizer will have to encode: prompts as the template writes them, and responses.
std::vector<std::string> training_texts(const fs::path& data,
                                        const std::optional<std::string>& template_name) {
  std::vector<std::string> texts;
  if (detect_data_format(data) == DataFormat::kText) {
    if (template_name)
      throw bad_input("--template " + *template_name, "plain text in " + data.string(),
                      "no --template: it is for records with instruction and output");
    for (TextDocument& document : read_plain_text(data)) texts.push_back(std::move(document.text));
    return texts;
  }
  const PromptTemplate prompt_template = PromptTemplate::load(template_name.value_or("alpaca"));
  for (const Record& record : read_alpaca(data)) {
    texts.push_back(prompt_template.prompt_text(record));
    texts.push_back(prompt_template.response_text(record));
  }
  return texts;
}

/// The directory that holds the tokenizer; empty without one. Trains it into `scratch` where asked to.
fs::path provide_tokenizer(const InitOptions& options, const Json& architecture, const fs::path& scratch) {
  if (options.tokenizer) return *options.tokenizer;
  if (!options.train_tokenizer) return {};
  SentencePieceTraining training;
  int64_t size = kDefaultTrainedVocabulary;
  if (options.vocab_size) {
    size = *options.vocab_size;
  } else if (architecture.contains("vocab_size") && architecture["vocab_size"].is_number_integer()) {
    size = architecture["vocab_size"].get<int64_t>();
  }
  if (size < 1 || size > INT32_MAX) throw bad_input("vocab_size", fmt::format("{}", size), "1 to 2147483647");
  training.vocab_size = static_cast<int32_t>(size);
  train_sentencepiece(training_texts(*options.train_tokenizer, options.template_name), training, scratch);
  return scratch;
}

/// vocab_size of the model: --vocab-size, else the architecture's, else exactly the tokenizer's.
void settle_vocabulary(Json& architecture, const InitOptions& options, const Tokenizer* tokenizer) {
  if (options.vocab_size) architecture["vocab_size"] = *options.vocab_size;
  if (!architecture.contains("vocab_size") && tokenizer) architecture["vocab_size"] = tokenizer->vocab_size();
}

/// The ids that the config names must be the tokenizer's; those it does not name are taken from there.
void settle_special_ids(ModelConfig& config, const std::string& source, const Tokenizer& tokenizer) {
  if (const auto bos = tokenizer.bos_id()) {
    if (config.bos_token_id && *config.bos_token_id != *bos)
      throw bad_input(source + ": bos_token_id", fmt::format("{}", *config.bos_token_id),
                      fmt::format("{}, the tokenizer's, or no such key", *bos));
    config.bos_token_id = *bos;
  }
  if (const auto eos = tokenizer.eos_id()) {
    const std::vector<int64_t>& ids = config.eos_token_ids;
    if (!ids.empty() && std::find(ids.begin(), ids.end(), *eos) == ids.end())
      throw bad_input(source + ": eos_token_id", fmt::format("{}", ids.front()),
                      fmt::format("{}, the tokenizer's, or no such key", *eos));
    if (ids.empty()) config.eos_token_ids = {*eos};
  }
}

int run_init(const InitOptions& options) {
  if (options.tokenizer && options.train_tokenizer)
    throw bad_input("init", "--tokenizer and --train-tokenizer", "one of the two");
  if (options.template_name && !options.train_tokenizer)
    throw bad_input("--template " + *options.template_name, "no --train-tokenizer",
                    "--train-tokenizer DATA beside it");
  require_new_directory(options.out);
  Json architecture = read_json_file(options.architecture, {.allow_comments = true});
  if (!architecture.is_object())
    throw bad_input(options.architecture, describe_json(&architecture), "an object, as a config.json");
  if (!architecture.contains("model_type")) architecture["model_type"] = "llama";
  const ScratchFolder scratch;
  const fs::path tokenizer_source = provide_tokenizer(options, architecture, scratch.path());
  const std::unique_ptr<Tokenizer> tokenizer =
      tokenizer_source.empty() ? nullptr : load_tokenizer(tokenizer_source);
  settle_vocabulary(architecture, options, tokenizer.get());
  ModelConfig config = parse_model_config(architecture, options.architecture);
  if (tokenizer) {
    check_vocabulary(
        *tokenizer, tokenizer_source.string(), config.vocab_size,
        options.vocab_size ? "as --vocab-size says" : "the vocab_size of " + options.architecture);
    settle_special_ids(config, options.architecture, *tokenizer);
  }
  settle_sharing(config, options.sharing, options.anchor, options.architecture);

  const DType dtype = options.dtype ? parse_export_dtype(*options.dtype) : config.dtype;
  Weights weights(TensorTable(config), {}, scalar_type(dtype), at::kCPU);
  initialise_weights(weights, config.initializer_range, options.seed);
  ExportOptions files;
  files.tokenizer_source = tokenizer_source;
  files.eos_token_ids = config.eos_token_ids;
  export_model(
      options.out, config, weights.table, [&](size_t i) { return weights.tensor(i); }, dtype, files);
  spdlog::info("{}: {} parameters in {}, vocabulary of {}, {} of {} layers share attention", options.out,
               weights.table.parameter_count(), torch_name(dtype), config.vocab_size,
               config.sharing.num_shared(), config.num_hidden_layers);
  return kExitOk;
}

}  // namespace

void add_init_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<InitOptions>();
  CLI::App* command = app.add_subcommand("init", "Make a fresh random checkpoint");
  command
      ->add_option("architecture", options->architecture,
                   "JSON with the keys of a Llama's config.json (comments allowed)")
      ->required();
  command->add_option("out", options->out, "New or empty folder for the result")->required();
  command->add_option("--tokenizer", options->tokenizer, "Folder whose tokenizer files are copied");
  command->add_option(
      "--train-tokenizer", options->train_tokenizer,
      "Alpaca JSON or JSONL, .txt, or JSONL with `text`: a SentencePiece tokenizer (BPE with byte "
      "fallback) is trained on it");
  command->add_option("--template", options->template_name,
                      "Template whose prompts --train-tokenizer sees around the records (default alpaca)");
  command
      ->add_option(
          "--vocab-size", options->vocab_size,
          "Rows of the embedding, and size of the tokenizer that is trained (default: the architecture's "
          "vocab_size, else the tokenizer's, 512 where it is trained)")
      ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));
  command->add_option("--seed", options->seed, "Seed of the weights (default 42)")->check(seed_number());
  command->add_option("--dtype", options->dtype,
                      "float32 | bfloat16 | float16 (default: the architecture's, else float32)");
  add_sharing_options(*command, options->sharing, options->anchor);
  command->footer(
      "Matrices are normal(0, initializer_range), norms one; the same seed gives the same weights. "
      "bos_token_id\n"
      "and eos_token_id are the tokenizer's; where the architecture names others, that is an error.\n"
      "Examples:\n"
      "  satune init arch.json base --train-tokenizer records.json --vocab-size 1024\n"
      "  satune init arch.json base --tokenizer MODEL --dtype bfloat16\n"
      "  satune init arch.json sa-base --tokenizer MODEL --sharing 5-7 --seed 7");
  command->callback([options, &exit_code] { exit_code = run_init(*options); });
}

}  // namespace satune
