#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/safetensors.h"
#include "model/files/safetensors_dtypes.h"

namespace satune {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// What a header says of one tensor, checked by itself.
struct Entry {
  std::string name, dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

struct Where {
  std::string file;
  std::string tensor(std::string_view name) const {
    return fmt::format("{}: tensor {}", file, quote_json(name));
  }
};

std::string range_text(const Entry& entry) {
  return fmt::format("bytes [{}, {})", entry.begin, entry.end);
}

std::string_view read_header(const MappedFile& file, const Where& where) {
  const auto bytes = file.bytes();
  if (bytes.size() < 8) {
    throw bad_input(where.file,
                    bytes.empty() ? "an empty file" : fmt::format("a file of {} bytes", bytes.size()),
                    "a safetensors file (8 bytes of header length, the header, the data)");
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > kMaxHeaderBytes) {
    throw bad_input(where.file, fmt::format("a header length of {}", length),
                    fmt::format("at most {} (is this a safetensors file?)", kMaxHeaderBytes));
  }
  if (length > bytes.size() - 8) {
    throw bad_input(where.file,
                    fmt::format("a header length of {} in a file of {} bytes", length, bytes.size()),
                    "a whole file (cut short?)");
  }
  return file.text().substr(8, length);
}

Json parse_header(std::string_view header, const Where& where) {
  // nlohmann would skip a byte order mark, the format has none.
  if (header.starts_with("\xEF\xBB\xBF")) throw bad_input(where.file, "a byte order mark", "a JSON header");
  Json json = parse_json(header, where.file + " header");
  if (!json.is_object()) throw bad_input(where.file + " header", describe_json(&json), "an object");
  return json;
}

const Json& field(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end())
    throw bad_input(where, fmt::format("no {}", key), "dtype, shape and data_offsets");
  return *found;
}

std::vector<int64_t> parse_shape(const Json& json, const std::string& where) {
  if (!json.is_array()) throw bad_input(where, "as shape " + describe_json(&json), "an array of sizes");
  std::vector<int64_t> shape;
  for (const Json& size : json) {
    if (!size.is_number_unsigned())
      throw bad_input(where, "in shape " + describe_json(&size), "a size of 0 or more");
    if (size.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      throw bad_input(where, "shape " + json.dump(), "a product of sizes that does not overflow");
    }
    shape.push_back(size.get<int64_t>());
  }
  return shape;
}

Entry parse_entry(const std::string& name, const Json& json, const Where& file) {
  const std::string where = file.tensor(name);
  if (!json.is_object())
    throw bad_input(where, describe_json(&json), "an object with dtype, shape and data_offsets");
  Entry entry{.name = name, .dtype = {}, .shape = parse_shape(field(json, "shape", where), where)};

  const Json& dtype = field(json, "dtype", where);
  if (!dtype.is_string())
    throw bad_input(where, "as dtype " + describe_json(&dtype), "a name such as \"BF16\"");
  entry.dtype = dtype.get<std::string>();
  const std::optional<uint64_t> bits = safetensors_bits(entry.dtype);
  if (!bits)
    throw bad_input(where, "the unknown dtype " + quote_json(entry.dtype), "F32, F16, BF16, I64, ...");

  const Json& offsets = field(json, "data_offsets", where);
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    throw bad_input(where, "data_offsets " + offsets.dump(-1, ' ', false, Json::error_handler_t::replace),
                    "[begin, end] in whole bytes from 0");
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.begin > entry.end) throw bad_input(where, range_text(entry), "a begin that is not after the end");

  const std::optional<uint64_t> bytes = safetensors_bytes(entry.shape, *bits);
  if (!bytes) {
    throw bad_input(where, fmt::format("dtype {} and shape {}", entry.dtype, json.at("shape").dump()),
                    "a product of sizes that does not overflow and fills whole bytes");
  }
  if (*bytes != entry.end - entry.begin) {
    throw bad_input(
        where, fmt::format("{} of data", range_text(entry)),
        fmt::format("{} bytes for dtype {} and shape {}", *bytes, entry.dtype, json.at("shape").dump()));
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const Json& json, const Where& where) {
  const std::string name = where.file + ": __metadata__";
  if (!json.is_object()) throw bad_input(name, describe_json(&json), "an object of strings");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      throw bad_input(fmt::format("{}: key {}", name, quote_json(key)), describe_json(&value), "a string");
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

// The tensors must tile the data: no hole, no overlap, nothing behind the last.
void check_tiling(std::vector<Entry>& entries, uint64_t data_bytes, const Where& where) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  const Entry* previous = nullptr;
  for (const Entry& entry : entries) {
    if (entry.end > data_bytes) {
      throw bad_input(where.tensor(entry.name),
                      fmt::format("{} of {} bytes of data", range_text(entry), data_bytes),
                      "a range inside the file (cut short?)");
    }
    if (entry.begin > at) {
      throw bad_input(where.tensor(entry.name), fmt::format("{} after a hole", range_text(entry)),
                      fmt::format("data from byte {} on", at));
    }
    if (entry.begin < at) {
      throw bad_input(where.tensor(entry.name),
                      fmt::format("{} over tensor {} at {}", range_text(entry), quote_json(previous->name),
                                  range_text(*previous)),
                      "ranges that do not overlap");
    }
    at = entry.end;
    previous = &entry;
  }
  if (at != data_bytes) {
    throw bad_input(where.file, fmt::format("{} bytes of data", data_bytes),
                    fmt::format("{} as the header says (trailing bytes?)", at));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const Where where{path.string()};
  const std::string_view header = read_header(file_, where);
  const Json json = parse_header(header, where);
  std::vector<Entry> entries;
  entries.reserve(json.size());
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      metadata_ = parse_metadata(value, where);
    } else {
      entries.push_back(parse_entry(name, value, where));
    }
  }
  const auto data = file_.bytes().subspan(8 + header.size());
  check_tiling(entries, data.size(), where);
  for (Entry& entry : entries) {
    StoredTensor tensor{entry.name, std::move(entry.dtype), std::move(entry.shape),
                        data.subspan(entry.begin, entry.end - entry.begin)};
    tensors_.emplace(std::move(entry.name), std::move(tensor));
  }
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace satune
