// The machine a run computes on.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "data/files/json.h"
#include "trainer/settings.h"
#include "trainer/shard.h"

namespace satune {

/// Processors this process may use.
int64_t usable_processors();
/// Threads of LibTorch's operators: `num_threads`, or this process's part of the processors that the
/// `local_ranks` processes of this machine share; at least 1.
int64_t operator_threads(const Settings& settings, int64_t local_ranks = 1);
/// Sets them. LibTorch's own default is OMP_NUM_THREADS, which launchers set to 1. Call it before the first
/// operator.
void use_threads(const Settings& settings, int64_t local_ranks = 1);

/// "auto" takes a card where there is one: card `local_rank` of those visible, which becomes the current one.
/// Throws EnvironmentError for "cuda" without one, and when there are fewer cards than ranks.
at::Device choose_device(DeviceChoice choice, int64_t local_rank = 0);

/// Bytes that each of the `local_ranks` processes of this machine can still allocate: of its card, or its
/// part of memory and of the control group's limit.
int64_t available_memory(const at::Device& device, int64_t local_ranks = 1);
/// Highest use so far: of the card's allocator, or of this process.
int64_t peak_memory_bytes(const at::Device& device);

/// What bitwise repeatability depends on beside the settings: device, threads, instruction set, builds.
Json machine_json(const at::Device& device);
/// The same of a run of several ranks: their number too.
Json run_machine_json(const at::Device& device, const World& world);

}  // namespace satune
