#include "trainer/commands/diff_input.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "data/batches.h"
#include "data/files/error.h"
#include "evaluation/layer_analysis.h"
#include "trainer/commands/model_options.h"

namespace satune {
namespace {

constexpr const char* kTokens = "tokens";

at::Tensor as_tensor(const StoredTensor& stored, const std::string& where) {
  at::ScalarType type;
  if (stored.dtype == "F32") {
    type = at::kFloat;
  } else if (stored.dtype == "F64") {
    type = at::kDouble;
  } else if (stored.dtype == "BF16") {
    type = at::kBFloat16;
  } else if (stored.dtype == "F16") {
    type = at::kHalf;
  } else if (stored.dtype == "I64") {
    type = at::kLong;
  } else {
    throw bad_input(where, "dtype " + stored.dtype, "F64, F32, F16, BF16 or I64");
  }
  // from_blob wants a mutable pointer; the map is read-only and is only read.
  return at::from_blob(const_cast<std::byte*>(stored.bytes.data()), stored.shape, at::TensorOptions(type));
}

/// "1,403,407"
std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (true) {
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (stop != end && *stop != ','))
      throw bad_input("--tokens", fmt::format("\"{}\"", text),
                      "ids with commas between them, as in 1,403,407");
    ids.push_back(id);
    if (stop == end) return ids;
    at = stop + 1;
  }
}

Batch one_document(std::span<const int32_t> ids) {
  Batch batch;
  append_document(batch, ids, 1);
  return batch;
}

Batch read_records(const DiffInputOptions& options, const ModelSource& source, const Tokenizer& tokenizer,
                   int64_t max_length) {
  std::optional<PromptTemplate> prompt_template;
  if (detect_data_format(*options.data) == DataFormat::kAlpaca) {
    prompt_template = load_model_template(source, options.template_name, tokenizer);
  } else if (options.template_name) {
    throw bad_input("--template " + *options.template_name,
                    *options.data + ", plain text, which has no template", "Alpaca JSON or JSONL");
  }
  const AnalysisDocuments documents =
      read_analysis_documents(*options.data, tokenizer, prompt_template ? &*prompt_template : nullptr,
                              max_length, options.max_records);
  Batch batch;
  for (const EncodedSample& sample : documents.samples)
    append_document(batch, sample.tokens, sample.prompt_length);
  return batch;
}

}  // namespace

Batch read_diff_input(const DiffInputOptions& options, const ModelSource& source, int64_t max_length) {
  const int given = options.prompt.has_value() + options.tokens.has_value() + options.data.has_value();
  if (given != 1)
    throw bad_input("satune diff", given == 0 ? "nothing to compute on" : "several things to compute on",
                    "one of --prompt, --tokens and --data");
  if (options.tokens) return one_document(parse_ids(*options.tokens));
  const std::unique_ptr<Tokenizer> tokenizer = load_model_tokenizer(source.directory, source.config);
  if (options.data) return read_records(options, source, *tokenizer, max_length);
  require_utf8(*options.prompt, "--prompt");
  std::vector<int32_t> tokens = encode_raw_prompt(*options.prompt, *tokenizer);
  if (tokens.empty()) throw bad_input("--prompt", "no token: the tokenizer has no BOS", "some text");
  return one_document(tokens);
}

Batch dumped_tokens(const SafetensorsFile& dump) {
  const std::string where = dump.path().string() + ": tensor tokens";
  const StoredTensor* stored = dump.find(kTokens);
  if (stored == nullptr) throw bad_input(where, "nothing", "int64 ids [N], as dump_reference.py writes them");
  if (stored->dtype != "I64" || stored->shape.size() != 1 || stored->shape[0] < 1)
    throw bad_input(where, fmt::format("{} [{}]", stored->dtype, fmt::join(stored->shape, ", ")), "I64 [N]");
  const at::Tensor tokens_N = as_tensor(*stored, where).clone();
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens_N.numel(); ++i) {
    const int64_t id = tokens_N.const_data_ptr<int64_t>()[i];
    if (id < 0 || id > std::numeric_limits<int32_t>::max())
      throw bad_input(where, fmt::format("id {}", id), "ids of a vocabulary");
    ids.push_back(static_cast<int32_t>(id));
  }
  return one_document(ids);
}

NamedTensors dumped_tensors(const SafetensorsFile& dump) {
  NamedTensors tensors;
  for (const auto& [name, stored] : dump.tensors()) {
    if (name == kTokens) continue;
    tensors.emplace(name, as_tensor(stored, fmt::format("{}: tensor {}", dump.path().string(), name)));
  }
  return tensors;
}

void check_ids(const Batch& batch, const ModelSource& source, const std::string& where) {
  const auto [lowest, highest] = std::minmax_element(batch.tokens.begin(), batch.tokens.end());
  if (*lowest >= 0 && *highest < source.config.vocab_size) return;
  throw bad_input(where, fmt::format("id {}", *lowest < 0 ? *lowest : *highest),
                  fmt::format("ids from 0 below {}, the vocab_size of {}", source.config.vocab_size,
                              source.directory.string()));
}

}  // namespace satune
