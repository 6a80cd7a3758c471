// The element types of the safetensors format.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace satune {

/// Bits of one element; nothing for a name that the format does not have.
std::optional<uint64_t> safetensors_bits(std::string_view dtype);

/// Bytes of a tensor; nothing where the product overflows 64 bits or is no whole number of bytes. The
/// product is taken from the left, as the reference does: [0, 2^40, 2^40] is 0 bytes, [2^40, 2^40, 0]
/// overflows.
std::optional<uint64_t> safetensors_bytes(const std::vector<int64_t>& shape, uint64_t bits);

}  // namespace satune
