// Who this process is among the processes of a run: the environment contract of torchrun, which Slurm, MPI
// and Kubernetes scripts set too, and which our own launcher sets for the ranks it starts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "trainer/shard.h"

namespace satune {

struct RankEnvironment {
  World world;  ///< RANK, WORLD_SIZE; Open MPI's and Slurm's variables where those are absent
  int64_t local_rank = 0, local_world_size = 1;  ///< LOCAL_RANK, LOCAL_WORLD_SIZE
  std::string master_address = "127.0.0.1";      ///< MASTER_ADDR
  uint16_t master_port = 29500;                  ///< MASTER_PORT
  /// The agent holds the store's port (TORCHELASTIC_USE_AGENT_STORE): join it, do not open a second one.
  bool agent_store = false;
  /// TORCHELASTIC_RESTART_COUNT (our launcher sets it too): how often this machine's ranks were started
  /// again.
  int64_t restart_count = 0;
  std::string run_id;  ///< TORCHELASTIC_RUN_ID; "" without one
  /// The ranks' own name for this attempt of the run, whose keys alone are ours: agree_on_attempt() sets it.
  /// "" = the restart count has to do.
  std::string attempt;
  /// Where the cause of a failure is written for whoever started us: TORCHELASTIC_ERROR_FILE; "" = nowhere.
  std::string error_file;
  /// Rank variables were set: somebody else started the ranks, and we start none.
  bool launched = false;
};

/// Reads `get(name)` (nullopt = not set; the process's environment by default). Where RANK is absent, Open
/// MPI's variables are read, and then Slurm's when srun has started several tasks: the shells of sbatch and
/// salloc have some of them too and are no ranks. LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT
/// count whoever started the ranks. Throws BadInput naming the variable when one is malformed, contradicts
/// another (RANK not below WORLD_SIZE) or is missing beside others (MASTER_ADDR: when ranks are on other
/// machines).
RankEnvironment read_rank_environment(
    const std::function<std::optional<std::string>(const std::string&)>& get = {});

}  // namespace satune
