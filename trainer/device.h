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
/// Processors for one of the `local_ranks` ranks of a machine, at least 1. `affinity`: those that the process
/// may use; `available`: those it could use if it had not been bound. Launchers that bind (srun
/// --cpus-per-task, mpirun --bind-to core) give each rank processors of its own, so that all ranks' fit into
/// what is available, and then the rank uses all of its own. Where they do not fit (torchrun, our launcher),
/// the ranks share.
int64_t processors_of_rank(int64_t available, int64_t affinity, int64_t local_ranks);
/// Processors that this process could use had nobody bound it as a rank: those of its launcher, where that is
/// torchrun's agent or ours, else all that the control group allows.
int64_t processors_before_binding();
/// Threads of LibTorch's operators: `num_threads`, or the processors of one of `local_ranks` ranks, which
/// this process is one of. The second form is for ranks that are still to be started by somebody who does not
/// bind them.
int64_t operator_threads(const Settings& settings, int64_t local_ranks = 1);
int64_t operator_threads_unbound(const Settings& settings, int64_t local_ranks);
/// Sets them; throws BadInput for a num_threads far beyond the machine. LibTorch's own default is
/// OMP_NUM_THREADS, which launchers set to 1. Call it before the first operator.
void use_threads(const Settings& settings, int64_t local_ranks = 1);

/// Number of the card that a rank takes of the visible ones: its local rank's, or the one that is there
/// (srun --gpus-per-task=1 shows each rank its own alone). It may be `visible` or more.
int64_t card_of_rank(int64_t visible, int64_t local_rank);
/// "auto" takes a card where there is one: card_of_rank(), which becomes the current one. Throws
/// EnvironmentError for "cuda" without one, and when there are fewer cards than ranks, unless it is one.
at::Device choose_device(DeviceChoice choice, int64_t local_rank = 0);

/// Bytes that each of the `local_ranks` processes of this machine can still allocate: of its card, or its
/// part of memory and of the control group's limit.
int64_t available_memory(const at::Device& device, int64_t local_ranks = 1);
/// Bytes that a control group (cgroup v2, its folder) has left. Pages of files that were read and are not in
/// use count as used there, and are given up when memory is asked for: the largest int64_t without a limit.
int64_t room_in_control_group(const std::filesystem::path& group);
/// Highest use so far: of the card's allocator, or of this process.
int64_t peak_memory_bytes(const at::Device& device);
/// From here on peak_memory_bytes() is the highest use since, beginning with what is in use now. False, and
/// nothing changed, where the kernel does not allow it (/proc/self/clear_refs).
bool begin_peak_memory(const at::Device& device);

/// What bitwise repeatability depends on beside the settings: device, threads, instruction set, builds.
Json machine_json(const at::Device& device);
/// The same of a run: the number of its ranks too, and the name of the card.
Json run_machine_json(const at::Device& device, const World& world);

}  // namespace satune
