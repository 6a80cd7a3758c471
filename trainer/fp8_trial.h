// Whether a device multiplies 8-bit floats as fp8 needs it, tried out before a run relies on it.
#pragma once

#include <c10/core/Device.h>

#include <functional>

#include "trainer/settings.h"

namespace satune {

/// The largest relative difference (L2) of a projection's three products in 8 bits from those of the same
/// 8-bit operands in fp64. Throws what LibTorch throws that has no such products for the device.
double fp8_error(at::Device device);

/// With settings.fp8: throws EnvironmentError for a device that fails the trial.
void check_fp8(const Settings& settings, at::Device device,
               const std::function<double(at::Device)>& error = fp8_error);

}  // namespace satune
