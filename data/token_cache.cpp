#include "data/token_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "data/encode_records.h"
#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/fingerprint.h"

namespace satune {
namespace {

/// The file: this header, offsets u64[records + 1], tokens i32[tokens], prompt_lengths i32[records],
/// empty u8[records]; little-endian, every part aligned for its type.
struct Header {
  std::array<char, 8> magic;
  uint32_t checksum;  ///< CRC-32C of all bytes after this field
  uint32_t format;
  std::array<char, 64> fingerprint;
  uint64_t records, tokens;
};
static_assert(sizeof(Header) == 96);
constexpr std::array<char, 8> kMagic = {'S', 'A', 'T', 'O', 'K', 'E', 'N', '1'};
constexpr size_t kChecksumFrom = offsetof(Header, format);

/// Of everything that decides which tokens a record becomes.
std::string cache_fingerprint(const std::filesystem::path& data_file, DataFormat format,
                              const Tokenizer& tokenizer, const PromptTemplate& prompt_template,
                              const ColumnNames& columns) {
  Sha256 hash;
  hash.update_field(std::string_view(kMagic.data(), kMagic.size()));
  hash.update_field(static_cast<uint64_t>(format));
  hash.update_field(tokenizer.fingerprint());
  // What surrounds every record, and what tokenizer_config.json may change without touching the tokenizer.
  for (const std::optional<int32_t> id : {tokenizer.bos_id(), tokenizer.eos_id()})
    hash.update_field(id ? std::to_string(*id) : "none");
  if (format == DataFormat::kAlpaca) {
    hash.update_field(prompt_template.fingerprint());
    for (const std::string* name : {&columns.instruction, &columns.input, &columns.output})
      hash.update_field(*name);
  } else {
    hash.update_field(columns.text);
  }
  const MappedFile file(data_file);
  hash.update_field(file.text());
  return hash.hex();
}

template <typename T>
void append(std::vector<std::byte>& bytes, std::span<const T> values) {
  const auto raw = std::as_bytes(values);
  const size_t before = bytes.size();
  bytes.resize(before + raw.size());
  std::copy(raw.begin(), raw.end(), bytes.begin() + static_cast<std::ptrdiff_t>(before));
}

std::vector<std::byte> serialise(std::vector<EncodedRecord> records, DataFormat format,
                                 const std::string& fingerprint) {
  Header header{kMagic, 0, static_cast<uint32_t>(format), {}, records.size(), 0};
  std::copy_n(fingerprint.begin(), header.fingerprint.size(), header.fingerprint.begin());
  std::vector<uint64_t> offsets = {0};
  std::vector<int32_t> prompt_lengths;
  std::vector<uint8_t> empty;
  for (const EncodedRecord& record : records) {
    offsets.push_back(offsets.back() + record.sample.tokens.size());
    prompt_lengths.push_back(record.sample.prompt_length);
    empty.push_back(record.empty_output);
  }
  header.tokens = offsets.back();
  std::vector<std::byte> bytes;
  bytes.reserve(sizeof(Header) + 8 * offsets.size() + 4 * header.tokens + 5 * records.size());
  append(bytes, std::span<const Header>(&header, 1));
  append(bytes, std::span<const uint64_t>(offsets));
  for (EncodedRecord& record : records) {
    append(bytes, std::span<const int32_t>(record.sample.tokens));
    record.sample.tokens = {};
  }
  append(bytes, std::span<const int32_t>(prompt_lengths));
  append(bytes, std::span<const uint8_t>(empty));
  header.checksum = crc32c(std::span<const std::byte>(bytes).subspan(kChecksumFrom));
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

/// Cuts typed arrays off the front of the file's bytes.
class Cutter {
 public:
  explicit Cutter(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  std::span<const T> take(uint64_t count) {
    if (count > rest_.size() / sizeof(T)) {
      complete_ = false;
      return {};
    }
    const auto* begin = reinterpret_cast<const T*>(rest_.data());
    rest_ = rest_.subspan(count * sizeof(T));
    return {begin, static_cast<size_t>(count)};
  }
  bool fits_exactly() const { return complete_ && rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool complete_ = true;
};

}  // namespace

std::filesystem::path default_token_cache_directory() {
  const auto folder = [](const char* variable) -> std::filesystem::path {
    const char* value = std::getenv(variable);
    return value ? value : "";
  };
  if (const auto cache = folder("XDG_CACHE_HOME"); cache.is_absolute()) return cache / "satune";
  if (const auto home = folder("HOME"); home.is_absolute()) return home / ".cache" / "satune";
  return {};
}

bool TokenCache::attach(std::span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) return false;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const std::string_view fingerprint(header.fingerprint.data(), header.fingerprint.size());
  if (header.magic != kMagic || fingerprint != fingerprint_ ||
      header.format != static_cast<uint32_t>(format_) || header.records + 1 == 0 ||
      crc32c(bytes.subspan(kChecksumFrom)) != header.checksum) {
    return false;
  }
  Cutter cutter(bytes.subspan(sizeof(header)));
  offsets_ = cutter.take<uint64_t>(header.records + 1);
  tokens_ = cutter.take<int32_t>(header.tokens);
  prompt_lengths_ = cutter.take<int32_t>(header.records);
  empty_ = cutter.take<uint8_t>(header.records);
  return cutter.fits_exactly() && offsets_.back() == tokens_.size();
}

std::shared_ptr<const TokenCache> TokenCache::open_or_build(const std::filesystem::path& data_file,
                                                            const Tokenizer& tokenizer,
                                                            const PromptTemplate& prompt_template,
                                                            const TokenCacheOptions& options) {
  std::shared_ptr<TokenCache> cache(new TokenCache);
  cache->data_file_ = data_file;
  cache->format_ = detect_data_format(data_file, options.columns);
  if (cache->format_ == DataFormat::kAlpaca) prompt_template.check(tokenizer);
  cache->fingerprint_ =
      cache_fingerprint(data_file, cache->format_, tokenizer, prompt_template, options.columns);
  const std::filesystem::path stored = options.directory.empty()
                                           ? std::filesystem::path()
                                           : token_cache_file(options.directory, cache->fingerprint_);
  if (!stored.empty() && cache->open_stored(stored)) return cache;
  cache->memory_ = serialise(encode_records(data_file, cache->format_, tokenizer, prompt_template, options),
                             cache->format_, cache->fingerprint_);
  if (!stored.empty()) cache->store(stored, options.limits);
  if (!cache->mapped_) cache->attach(cache->memory_);
  return cache;
}

std::shared_ptr<const TokenCache> TokenCache::of_tokens(const std::string& name,
                                                        std::vector<std::vector<int32_t>> records) {
  std::shared_ptr<TokenCache> cache(new TokenCache);
  cache->data_file_ = name;
  cache->format_ = DataFormat::kText;
  Sha256 hash;
  std::vector<EncodedRecord> encoded;
  for (std::vector<int32_t>& tokens : records) {
    const auto bytes = std::as_bytes(std::span<const int32_t>(tokens));
    hash.update_field(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    encoded.push_back({{std::move(tokens), 0}, false});
  }
  cache->fingerprint_ = hash.hex();
  cache->memory_ = serialise(std::move(encoded), cache->format_, cache->fingerprint_);
  cache->attach(cache->memory_);
  return cache;
}

bool TokenCache::take(const std::filesystem::path& path) {
  std::optional<FileLock> lock = FileLock::try_lock(path, FileLock::Kind::kShared);
  if (!lock) return false;
  MappedFile file(path);
  // Swept away or replaced before the lock was had: what is mapped might not be what is locked.
  if (!lock->is_at(path)) return false;
  if (!attach(file.bytes())) {
    note_ = fmt::format("{}: damaged, so the data is encoded again", path.string());
    return false;
  }
  in_use_ = std::move(lock);
  mapped_ = std::move(file);
  mark_token_cache_used(path);
  return true;
}

bool TokenCache::open_stored(const std::filesystem::path& path) {
  try {
    return reused_ = take(path);
  } catch (const std::runtime_error& error) {
    note_ = error.what();
    return false;
  }
}

void TokenCache::store(const std::filesystem::path& path, const TokenCacheLimits& limits) {
  try {
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    if (error)
      throw EnvironmentError(
          fmt::format("{}: cannot be made: {}", path.parent_path().string(), error.message()));
    AtomicFile file(path);
    file.write(memory_);
    file.commit();
    if (!take(path))
      throw EnvironmentError(fmt::format("{}: swept away, or not what was written", path.string()));
    memory_ = {};
    sweep_token_caches(path.parent_path(), limits);
  } catch (const std::runtime_error& error) {
    note_ = fmt::format("the tokens are not kept for the next run: {}", error.what());
  }
}

std::span<const int32_t> TokenCache::tokens(int64_t record) const {
  const auto r = static_cast<size_t>(record);
  return tokens_.subspan(offsets_[r], offsets_[r + 1] - offsets_[r]);
}

}  // namespace satune
