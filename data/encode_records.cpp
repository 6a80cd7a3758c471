#include "data/encode_records.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

namespace satune {
namespace {

constexpr size_t kChunk = 64;  // records a thread takes at a time

/// encode(i) for every i < count. Chunks are taken in order, so when one fails all earlier ones are still
/// finished and the first error by record is the one thrown.
template <typename Encode>
std::vector<EncodedRecord> encode_all(size_t count, int threads, const Encode& encode) {
  std::vector<EncodedRecord> encoded(count);
  const size_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<std::exception_ptr> errors(chunks);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    while (!failed) {
      const size_t chunk = next++;
      if (chunk >= chunks) return;
      try {
        const size_t end = std::min(count, (chunk + 1) * kChunk);
        for (size_t i = chunk * kChunk; i < end; ++i) encoded[i] = encode(i);
      } catch (...) {
        errors[chunk] = std::current_exception();
        failed = true;
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    const size_t wanted = std::min(static_cast<size_t>(std::max(threads, 1)), std::max<size_t>(chunks, 1));
    for (size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
    work();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return encoded;
}

}  // namespace

std::vector<EncodedRecord> encode_records(const std::vector<Record>& records, const Tokenizer& tokenizer,
                                          const PromptTemplate& prompt_template, int threads) {
  return encode_all(records.size(), threads, [&](size_t i) {
    return EncodedRecord{prompt_template.encode(records[i], tokenizer),
                         prompt_template.response_text(records[i]).empty()};
  });
}

std::vector<EncodedRecord> encode_documents(const std::vector<TextDocument>& documents,
                                            const Tokenizer& tokenizer, int threads) {
  return encode_all(documents.size(), threads, [&](size_t i) {
    return EncodedRecord{encode_document(documents[i].text, tokenizer), documents[i].text.empty()};
  });
}

std::vector<EncodedRecord> encode_records(const std::filesystem::path& data_file, DataFormat format,
                                          const Tokenizer& tokenizer, const PromptTemplate& prompt_template,
                                          const TokenCacheOptions& options) {
  if (format == DataFormat::kText)
    return encode_documents(read_plain_text(data_file, options.columns), tokenizer, options.threads);
  return encode_records(read_alpaca(data_file, options.columns), tokenizer, prompt_template, options.threads);
}

}  // namespace satune
