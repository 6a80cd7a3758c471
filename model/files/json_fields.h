// Typed reading of one JSON object, with errors that name file and key. null counts as absent, as it does
// for transformers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/json.h"

namespace satune {

/// A view; the object must outlive it. All readers throw BadInput "SOURCE: key KEY: found ..., expected ...".
class JsonFields {
 public:
  /// `source` names the file or the object ("config.json"). Throws BadInput if `json` is no object.
  JsonFields(const Json& json, std::string source);

  /// nullptr if absent or null.
  const Json* find(std::string_view key) const;
  std::string where(std::string_view key) const;
  /// Throws for the value that the key has.
  [[noreturn]] void fail(std::string_view key, std::string_view expected) const;
  /// Refuses keys of other names, with the nearest known one.
  void allow_only(const std::vector<std::string>& keys) const;

  // Without a fallback the key is required.
  int64_t integer(std::string_view key, int64_t min, int64_t max, std::optional<int64_t> fallback = {}) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  double positive_number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  std::string string(std::string_view key, std::optional<std::string> fallback = {}) const;
  JsonFields object(std::string_view key) const;
  /// One id or a list of ids; empty if absent.
  std::vector<int64_t> token_ids(std::string_view key) const;

 private:
  const Json& json_;
  std::string source_;
};

/// null, one id, or a list: what JsonFields::token_ids() reads.
Json token_ids_json(const std::vector<int64_t>& ids);

}  // namespace satune
