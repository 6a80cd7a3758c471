// The machine a run computes on.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "data/files/json.h"
#include "trainer/settings.h"

namespace satune {

/// Processors this process may use.
int64_t usable_processors();
/// Sets the threads of LibTorch's operators: `num_threads`, or all that the process may use. LibTorch's own
/// default is OMP_NUM_THREADS, which launchers set to 1. Call it before the first operator.
void use_threads(const Settings& settings);

/// "auto" takes a card where there is one. Throws EnvironmentError for "cuda" without one.
at::Device choose_device(DeviceChoice choice);

/// Bytes that can still be allocated: of the card, or of memory and the control group's limit.
int64_t available_memory(const at::Device& device);
/// Highest use so far: of the card's allocator, or of this process.
int64_t peak_memory_bytes(const at::Device& device);

/// What bitwise repeatability depends on beside the settings: device, threads, instruction set, builds.
Json machine_json(const at::Device& device);

}  // namespace satune
