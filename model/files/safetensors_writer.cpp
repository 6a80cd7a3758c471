#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/safetensors.h"
#include "model/files/safetensors_dtypes.h"

namespace satune {
namespace {

struct DTypeBits {
  std::string_view name;
  uint64_t bits;
};

// safetensors 0.6, `enum Dtype`.
constexpr std::array<DTypeBits, 20> kDTypeBits{{{"BOOL", 8},    {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
                                                {"U8", 8},      {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
                                                {"F8_E8M0", 8}, {"I16", 16}, {"U16", 16},    {"F16", 16},
                                                {"BF16", 16},   {"I32", 32}, {"U32", 32},    {"F32", 32},
                                                {"C64", 64},    {"F64", 64}, {"I64", 64},    {"U64", 64}}};

uint64_t bytes_of(const TensorSpec& spec) {
  const std::optional<uint64_t> bits = safetensors_bits(spec.dtype);
  const std::optional<uint64_t> bytes = bits ? safetensors_bytes(spec.shape, *bits) : std::nullopt;
  if (!bytes) {
    throw std::logic_error(
        fmt::format("safetensors: tensor {} has dtype {} and an impossible shape", spec.name, spec.dtype));
  }
  return *bytes;
}

std::string make_header(const std::vector<TensorSpec>& specs,
                        const std::map<std::string, std::string>& metadata) {
  Json json = Json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  std::set<std::string_view> names{"__metadata__"};
  uint64_t at = 0;
  for (const TensorSpec& spec : specs) {
    if (!names.insert(spec.name).second) {
      throw std::logic_error("safetensors: tensor " + spec.name + " given twice");
    }
    const uint64_t end = at + bytes_of(spec);
    json.get_ref<Json::object_t&>().emplace_back(
        spec.name, Json{{"dtype", spec.dtype}, {"shape", spec.shape}, {"data_offsets", {at, end}}});
    at = end;
  }
  std::string header = json.dump();
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

}  // namespace

std::optional<uint64_t> safetensors_bits(std::string_view dtype) {
  for (const DTypeBits& known : kDTypeBits) {
    if (known.name == dtype) return known.bits;
  }
  return std::nullopt;
}

std::optional<uint64_t> safetensors_bytes(const std::vector<int64_t>& shape, uint64_t bits) {
  uint64_t product = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(product, static_cast<uint64_t>(size), &product))
      return std::nullopt;
  }
  if (__builtin_mul_overflow(product, bits, &product) || product % 8 != 0) return std::nullopt;
  return product / 8;
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorSpec> specs,
                                     std::map<std::string, std::string> metadata, FileOps& ops)
    : file_(std::move(path), ops) {
  const std::string header = make_header(specs, metadata);
  const uint64_t length = header.size();
  file_.write(std::as_bytes(std::span(&length, 1)));
  file_.write(header);
  expected_bytes_ =
      std::transform_reduce(specs.begin(), specs.end(), file_.bytes_written(), std::plus<>(), bytes_of);
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  if (bytes.size() > expected_bytes_ - file_.bytes_written()) {
    throw std::logic_error("safetensors: more data than the header declares");
  }
  file_.write(bytes);
}

void SafetensorsWriter::commit() {
  if (file_.bytes_written() != expected_bytes_) {
    throw std::logic_error(
        fmt::format("safetensors: {} bytes written, {} declared", file_.bytes_written(), expected_bytes_));
  }
  file_.commit();
}

}  // namespace satune
