// Every record of a data file as tokens, kept on disk between runs and read through a memory map. Nothing
// that only selects or cuts (max_length, policies, split) is part of it: those are applied by Dataset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/files/file_lock.h"
#include "data/files/mapped_file.h"
#include "data/prompt_template.h"
#include "data/records.h"
#include "data/token_cache_folder.h"
#include "data/tokenizer.h"

namespace satune {

struct TokenCacheOptions {
  ColumnNames columns;
  std::filesystem::path directory;  ///< empty = keep the tokens in memory only
  int threads = 1;                  ///< of the encoding; the result does not depend on it
  TokenCacheLimits limits = {};     ///< of the directory, looked at whenever a file is added to it
};

/// $XDG_CACHE_HOME/satune, else $HOME/.cache/satune, else empty.
std::filesystem::path default_token_cache_directory();

/// Immutable. Record r (0-based) is the file's record number r + 1. While it lives, no sweep of the directory
/// by any process removes its file.
class TokenCache {
 public:
  /// Takes the file of `options.directory` whose key is (bytes of `data_file`, tokenizer, template, columns);
  /// where it is missing, cut off or damaged (checksum), reads and encodes `data_file` and stores it
  /// atomically. A directory that cannot be written costs the reuse only: see note().
  /// Throws BadInput about `data_file` or a template that the tokenizer cannot serve.
  static std::shared_ptr<const TokenCache> open_or_build(const std::filesystem::path& data_file,
                                                         const Tokenizer& tokenizer,
                                                         const PromptTemplate& prompt_template,
                                                         const TokenCacheOptions& options = {});

  /// Of records that are there as tokens already, all of them targets; in memory only. `name` stands where
  /// the data file's would.
  static std::shared_ptr<const TokenCache> of_tokens(const std::string& name,
                                                     std::vector<std::vector<int32_t>> records);

  int64_t records() const { return static_cast<int64_t>(prompt_lengths_.size()); }
  /// The whole record, however long.
  std::span<const int32_t> tokens(int64_t record) const;
  /// Targets are the tokens from here on (never a document's first).
  int32_t prompt_length(int64_t record) const { return prompt_lengths_[static_cast<size_t>(record)]; }
  /// There is no text to learn from: an empty output, or an empty document.
  bool empty_output(int64_t record) const { return empty_[static_cast<size_t>(record)] != 0; }

  const std::filesystem::path& data_file() const { return data_file_; }
  DataFormat format() const { return format_; }
  /// Of data bytes, tokenizer, template and columns.
  const std::string& fingerprint() const { return fingerprint_; }
  bool reused() const { return reused_; }
  /// Why a stored file was not used or could not be written; "" = nothing to say.
  const std::string& note() const { return note_; }

 private:
  TokenCache() = default;
  /// Points the spans into `bytes`; false when these are not a whole file of this fingerprint.
  bool attach(std::span<const std::byte> bytes);
  bool open_stored(const std::filesystem::path& path);
  void store(const std::filesystem::path& path, const TokenCacheLimits& limits);
  /// Locks and maps the file; false where it is not there (any more), or damaged, which note() then tells.
  bool take(const std::filesystem::path& path);

  std::filesystem::path data_file_;
  DataFormat format_ = DataFormat::kAlpaca;
  std::string fingerprint_, note_;
  bool reused_ = false;
  std::optional<FileLock> in_use_;    ///< keeps the stored file from being swept away
  std::optional<MappedFile> mapped_;  ///< the stored file, or
  std::vector<std::byte> memory_;     ///< the same bytes
  std::span<const uint64_t> offsets_;
  std::span<const int32_t> prompt_lengths_;
  std::span<const uint8_t> empty_;
  std::span<const int32_t> tokens_;
};

}  // namespace satune
