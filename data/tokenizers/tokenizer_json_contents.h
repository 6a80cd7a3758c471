// A tokenizer.json as read: its two long tables apart, the rest as a JSON tree.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace satune {

struct TokenizerJsonContents {
  nlohmann::json rest;  ///< everything but model.vocab and model.merges
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;
};

/// `path` names the file in errors. Throws BadInput for text that is not JSON and for tables of another form
/// (a Unigram vocabulary, for one, is a list: then `rest` holds model.type and `vocab` stays empty).
TokenizerJsonContents read_tokenizer_json_contents(const std::string& path, std::string_view text);

}  // namespace satune
