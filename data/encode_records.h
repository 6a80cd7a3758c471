// All records of a file to tokens, over several threads.
#pragma once

#include <filesystem>
#include <vector>

#include "data/token_cache.h"

namespace satune {

struct EncodedRecord {
  EncodedSample sample;
  bool empty_output = false;
};

/// In file order, whatever the number of threads (Tokenizer::encode must be callable from several at once).
/// Of several errors the one of the first record is thrown.
std::vector<EncodedRecord> encode_records(const std::filesystem::path& data_file, DataFormat format,
                                          const Tokenizer& tokenizer, const PromptTemplate& prompt_template,
                                          const TokenCacheOptions& options);

/// The same of records that are read already.
std::vector<EncodedRecord> encode_records(const std::vector<Record>& records, const Tokenizer& tokenizer,
                                          const PromptTemplate& prompt_template, int threads);
std::vector<EncodedRecord> encode_documents(const std::vector<TextDocument>& documents,
                                            const Tokenizer& tokenizer, int threads);

}  // namespace satune
