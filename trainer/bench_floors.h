// What a machine can do at best, measured: floors under the times of a step's parts.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace satune {

struct Floors {
  double gemm_flops = 0;  ///< per second, of a large at::matmul
  double copy_bytes = 0;  ///< per second, of a large copy; read and written count
  /// As gemm_flops, of a large at::_scaled_mm of 8-bit floats; 0 where it was not measured.
  double gemm8_flops = 0;

  /// Seconds of a part with this much work, whichever floor is higher. `flops8` of its `flops` are of
  /// products in 8 bits.
  double seconds(double flops, double bytes, double flops8 = 0) const;
};

/// The median of a few goes each. Products are of `type`; on the CPU, which may have no instructions for a
/// 16-bit one, of fp32 where those are faster. `fp8`: also those of 8 bits, on a card; a CPU has none.
Floors measure_floors(const at::Device& device, at::ScalarType type, bool fp8 = false);

/// The better of two measurements, by rate: other work on the machine only takes away.
Floors better_of(const Floors& a, const Floors& b);

}  // namespace satune
