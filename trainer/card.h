// The card a run computes on, as its driver describes it: peak speed by name, and what NVML measures.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace satune {

/// FLOP/s of dense 16-bit matrix products (bf16 and fp16 alike) of a card by the name CUDA gives it, from
/// NVIDIA's data sheets, which state twice as much where they assume sparsity. Unset for cards that are not
/// in the table and for slices of a card (MIG).
std::optional<double> peak_half_flops(std::string_view card_name);

struct CardReading {
  std::optional<double> power_w, temperature_c;
  std::optional<double> utilisation_percent;  ///< share of the last sample period in which a kernel ran
};

/// Shared libraries of the driver, loaded when a Card is made; tests put their own in.
struct CardLibraries {
  std::string cuda = "libcuda.so.1";
  std::string nvml = "libnvidia-ml.so.1";
};

/// One card. Nothing here throws or ends a run: what a driver does not offer stays unset. One thread at a
/// time.
class Card {
 public:
  using Clock = std::chrono::steady_clock;

  /// `ordinal` as CUDA numbers the cards that this process sees. A library that is missing is warned about
  /// once.
  explicit Card(int ordinal, const CardLibraries& libraries = {});
  ~Card();

  /// As CUDA gives it; empty where the driver does not say.
  const std::string& name() const { return name_; }
  /// Measured now, or the last reading where that is less than a second old: a step pays for one a second.
  const CardReading& read(Clock::time_point now = Clock::now());

 private:
  class Nvml;

  std::string name_;
  std::unique_ptr<Nvml> nvml_;  ///< null where NVML or the card in it was not found
  CardReading last_;
  std::optional<Clock::time_point> read_at_;
};

}  // namespace satune
