#include "trainer/device_rates.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>
#include <utility>

#include "data/files/error.h"

namespace satune {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// Data sheets: dense peaks without tensor cores for fp32 (which LibTorch takes by default); NVLink one way;
// one network port per card of 400 (H) and 200 (A) Gbit/s, as in DGX machines. Memory: the nominal size less
// what driver and context hold.
const std::array<DeviceRates, 5>& known_devices() {
  static const std::array<DeviceRates, 5> devices = {{
      {"h200", true, 139 * kGiB, 989.4e12, 66.9e12, 450e9, 50e9, 8},
      {"h100", true, 78 * kGiB, 989.4e12, 66.9e12, 450e9, 50e9, 8},
      {"a100-80", true, 78 * kGiB, 312e12, 19.5e12, 300e9, 25e9, 8},
      {"a100-40", true, 39 * kGiB, 312e12, 19.5e12, 300e9, 25e9, 8},
      {"cpu", false, 0, 0, 0, 0, 0, 1},
  }};
  return devices;
}

BadInput unknown_device(std::string_view text) {
  return bad_input("--device", fmt::format("\"{}\"", text),
                   "h200, h100, a100-80, a100-40, cpu, or bytes of memory such as 80GiB");
}

}  // namespace

std::span<const CardSize> common_cards() {
  static constexpr std::array<CardSize, 6> cards = {{{"24 GB (RTX 4090, L4)", 23 * kGiB},
                                                     {"40 GB (A100)", 39 * kGiB},
                                                     {"48 GB (L40S, A6000)", 44 * kGiB},
                                                     {"80 GB (A100, H100)", 78 * kGiB},
                                                     {"141 GB (H200)", 139 * kGiB},
                                                     {"180 GB (B200)", 177 * kGiB}}};
  return cards;
}

DeviceRates parse_device_rates(std::string_view text) {
  for (const DeviceRates& device : known_devices()) {
    if (text == device.name) return device;
  }
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) throw unknown_device(text);
  const std::string_view unit(end, text.data() + text.size());
  constexpr std::array<std::pair<std::string_view, double>, 5> units = {
      {{"", 1}, {"MiB", 0x1p20}, {"MB", 1e6}, {"GiB", 0x1p30}, {"GB", 1e9}}};
  const auto known =
      std::find_if(units.begin(), units.end(), [&](const auto& each) { return each.first == unit; });
  if (known == units.end()) throw unknown_device(text);
  const double bytes = value * known->second;
  if (!(bytes >= 0x1p20 && bytes < 0x1p62)) throw unknown_device(text);  // "80" means no 80 bytes
  DeviceRates device;
  device.name = std::string(text);
  device.memory_bytes = static_cast<int64_t>(bytes);
  return device;
}

}  // namespace satune
