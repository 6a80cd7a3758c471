// What is published about devices that a plan can name: memory, peak rates, links.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "trainer/settings.h"

namespace satune {

struct DeviceRates {
  std::string name;
  bool on_card = true;
  int64_t memory_bytes = 0;  ///< that a run can have; 0 = whatever this machine has
  double half_flops = 0;     ///< peak of dense bf16 and fp16, per second; 0 = unknown
  double full_flops = 0;     ///< of fp32
  double near_link = 0;      ///< bytes per second that a device sends to others of its machine
  double far_link = 0;       ///< to those of other machines
  int64_t per_machine = 8;   ///< devices

  double flops(Precision precision) const { return precision == Precision::kFp32 ? full_flops : half_flops; }
  double link(int64_t world_size) const { return world_size <= per_machine ? near_link : far_link; }
};

/// A size that cards come in.
struct CardSize {
  std::string_view name;     ///< "80 GB (A100, H100)"
  int64_t memory_bytes = 0;  ///< that a run can have
};
/// Ascending by memory.
std::span<const CardSize> common_cards();

/// Share of the peak that predictions count with where no rate is given.
inline constexpr double kPredictedUtilisation = 0.5;

/// "h200", "h100", "a100-80", "a100-40", "cpu", or bytes of an unknown card's memory ("85899345920",
/// "80GiB"). Throws BadInput naming --device.
DeviceRates parse_device_rates(std::string_view text);

}  // namespace satune
