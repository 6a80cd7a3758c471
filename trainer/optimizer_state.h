// What AdamW keeps for each trained parameter, by memory mode. Bytes, beside a bf16 weight and its gradient:
//
//   master_weights   "fp32"   4       a copy of its own (none in fp32 runs, where the weights are the master)
//                    "split"  2.125   the weight and what its rounding left out: the same numbers as "fp32"
//                    "none"   0       the weights alone, rounded stochastically after each update
//   optimizer_moments  "fp32" 8,  "bf16" 4,  "8bit" 2.03
//
// The update itself is fp32 in every mode: numbers are decoded, updated and encoded again.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/settings.h"
#include "trainer/state_array.h"

namespace satune {

/// The numbers of an element, in the order they are stored.
inline constexpr std::string_view kOptimizerParts[] = {"master", "exp_avg", "exp_avg_sq"};

struct StateFormat {
  MasterWeights master_weights = MasterWeights::kFp32;
  OptimizerMoments moments = OptimizerMoments::kFp32;

  StateFormat() = default;
  explicit StateFormat(const Settings& settings)
      : master_weights(settings.master_weights), moments(settings.optimizer_moments) {}
};

/// How a moment is kept. `second`: exp_avg_sq.
StateForm moment_form(OptimizerMoments moments, bool second);

/// Bytes of `elements` parameters, without the weights themselves.
struct OptimizerBytes {
  int64_t master = 0, moments = 0;
};
OptimizerBytes optimizer_bytes(const StateFormat& format, Precision precision, int64_t elements);

/// One kind of tensor in a snapshot: "PART.TENSOR", or "PART_scale.TENSOR" with a number for each block of
/// kStateBlock elements of the flat buffer that the stored elements lie in.
struct StoredPart {
  std::string_view part;  ///< one of kOptimizerParts
  bool scales = false;
  at::ScalarType type = at::kFloat;

  std::string name() const { return std::string(part) + (scales ? "_scale" : ""); }
  /// Numbers of elements [begin, begin + count) of a flat buffer.
  int64_t numbers(int64_t begin, int64_t count) const;
};
/// `only_master`: for a snapshot that cannot be continued from.
std::vector<StoredPart> stored_parts(const StateFormat& format, bool only_master = false);
/// Bytes of those of `elements` parameters.
int64_t stored_bytes(const std::vector<StoredPart>& parts, int64_t elements);

}  // namespace satune
