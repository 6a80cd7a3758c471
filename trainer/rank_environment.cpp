#include "trainer/rank_environment.h"

#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "data/files/error.h"

namespace satune {
namespace {

using Getter = std::function<std::optional<std::string>(const std::string&)>;

std::optional<std::string> of_process(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

/// Variables, of which an empty one counts as not set.
class Variables {
 public:
  explicit Variables(Getter get) : get_(std::move(get)) {}

  std::optional<std::string> text(const std::string& name) const {
    auto value = get_(name);
    return value && value->empty() ? std::nullopt : value;
  }

  std::optional<int64_t> number(const std::string& name, int64_t least, int64_t most) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    int64_t number = 0;
    const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
    if (error != std::errc() || end != value->data() + value->size() || number < least || number > most) {
      throw bad_input(name, "\"" + *value + "\"",
                      most == kAny ? fmt::format("a whole number from {}", least)
                                   : fmt::format("a whole number from {} to {}", least, most));
    }
    return number;
  }
  std::optional<int64_t> number(const std::string& name, int64_t least) const {
    return number(name, least, kAny);
  }

  bool flag(const std::string& name) const {
    const auto value = text(name);
    if (!value || *value == "False" || *value == "false" || *value == "0") return false;
    if (*value == "True" || *value == "true" || *value == "1") return true;
    throw bad_input(name, "\"" + *value + "\"", "True or False");
  }

 private:
  static constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  Getter get_;
};

/// What a launcher calls its four numbers. Slurm has a list of sizes in place of the last.
struct Names {
  std::string rank, size, local_rank, local_size;
  bool local_size_is_list = false;
};

Names torch_names() {
  return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
}

Names open_mpi_names() {
  return {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
          "OMPI_COMM_WORLD_LOCAL_SIZE"};
}

/// Those of the step, where Slurm tells it from the allocation.
Names slurm_names(const Variables& variables) {
  const auto known = [&](const char* step, const char* job) { return variables.text(step) ? step : job; };
  return {"SLURM_PROCID", known("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_LOCALID",
          known("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"), true};
}

/// srun sets SLURM_STEP_ID for each task it starts. The shell of sbatch or salloc has SLURM_NTASKS of the
/// allocation and even SLURM_PROCID=0, but is one process that nobody started as a rank; so is the one task
/// of a shell under srun.
bool started_by_srun(const Variables& variables, const Names& names) {
  return variables.text("SLURM_STEP_ID") && variables.text(names.rank) &&
         variables.number(names.size, 1).value_or(1) > 1;
}

/// Entry `node` of Slurm's "2(x3),1": 2, 2, 2, 1.
int64_t tasks_on_node(const std::string& name, std::string_view list, int64_t node) {
  const auto malformed = [&] {
    return bad_input(name, fmt::format("\"{}\"", list), "numbers of tasks per node such as 2(x3),1");
  };
  const auto number = [&](std::string_view text) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 1) throw malformed();
    return value;
  };
  std::string_view rest = list;
  while (!rest.empty()) {
    std::string_view entry = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), entry.size() + 1));
    int64_t nodes = 1;
    if (const size_t open = entry.find("(x"); open != std::string_view::npos) {
      if (!entry.ends_with(')')) throw malformed();
      nodes = number(entry.substr(open + 2, entry.size() - open - 3));
      entry = entry.substr(0, open);
    }
    const int64_t tasks = number(entry);
    if (node < nodes) return tasks;
    node -= nodes;
  }
  throw malformed();
}

[[noreturn]] void missing(const std::string& name, const std::string& beside, const std::string& expected) {
  throw bad_input(name, "nothing beside " + beside, expected);
}

/// Rank and size on this machine. What a script sets under torchrun's names goes before the launcher's own.
void read_local_world(const Variables& variables, Names names, RankEnvironment& environment) {
  const Names torch = torch_names();
  if (variables.text(torch.local_rank)) names.local_rank = torch.local_rank;
  if (variables.text(torch.local_size)) {
    names.local_size = torch.local_size;
    names.local_size_is_list = false;
  }
  const int64_t world_size = environment.world.size;
  const auto rank = variables.number(names.local_rank, 0);
  std::optional<int64_t> size;
  if (!names.local_size_is_list) {
    size = variables.number(names.local_size, 1);
  } else if (const auto list = variables.text(names.local_size)) {
    size = tasks_on_node(names.local_size, *list, variables.number("SLURM_NODEID", 0).value_or(0));
  }
  if (rank && !size && world_size > 1) {
    missing(names.local_size, names.local_rank, "the number of ranks on this machine");
  }
  if (!rank && size.value_or(1) > 1) missing(names.local_rank, names.local_size, "the rank on this machine");
  environment.local_rank = rank.value_or(0);
  environment.local_world_size = size.value_or(1);
  if (environment.local_world_size > world_size) {
    throw bad_input(names.local_size, std::to_string(environment.local_world_size),
                    fmt::format("at most {}={}", names.size, world_size));
  }
  if (environment.local_rank >= environment.local_world_size) {
    throw bad_input(names.local_rank, std::to_string(environment.local_rank),
                    fmt::format("a rank below {}={}", names.local_size, environment.local_world_size));
  }
}

void read_world(const Variables& variables, const Names& names, RankEnvironment& environment) {
  const auto size = variables.number(names.size, 1);
  if (!size) missing(names.size, names.rank, "the number of ranks");
  const auto rank = variables.number(names.rank, 0);
  if (!rank && *size > 1) missing(names.rank, fmt::format("{}={}", names.size, *size), "the rank");
  environment.world = {rank.value_or(0), *size};
  if (environment.world.rank >= *size) {
    throw bad_input(names.rank, std::to_string(environment.world.rank),
                    fmt::format("a rank below {}={}", names.size, *size));
  }
  // Scripts often set WORLD_SIZE and leave the rank to mpirun or srun.
  const std::string torch_size = torch_names().size;
  if (const int64_t other = variables.number(torch_size, 1).value_or(*size); other != *size) {
    throw bad_input(torch_size, std::to_string(other), fmt::format("{}={}", names.size, *size));
  }
  read_local_world(variables, names, environment);
}

/// Who started the ranks, by the names of its variables; nullopt = nobody.
std::optional<Names> find_launcher(const Variables& variables) {
  const Names torch = torch_names(), open_mpi = open_mpi_names(), slurm = slurm_names(variables);
  if (variables.text(torch.rank)) return torch;
  if (variables.text(open_mpi.rank)) return open_mpi;
  if (started_by_srun(variables, slurm)) return slurm;
  if (variables.text(torch.size)) return torch;
  for (const std::string& name : {torch.local_rank, torch.local_size}) {
    if (variables.text(name)) missing(torch.rank, name, "the rank, or none of these variables");
  }
  return std::nullopt;
}

void read_store(const Variables& variables, RankEnvironment& environment) {
  const auto address = variables.text("MASTER_ADDR");
  if (!address && environment.world.size > environment.local_world_size) {
    missing("MASTER_ADDR",
            fmt::format("{} ranks of which {} are on this machine", environment.world.size,
                        environment.local_world_size),
            "the address of rank 0's machine");
  }
  if (address) environment.master_address = *address;
  environment.master_port =
      static_cast<uint16_t>(variables.number("MASTER_PORT", 1, 65535).value_or(environment.master_port));
  environment.agent_store = variables.flag("TORCHELASTIC_USE_AGENT_STORE");
  environment.restart_count = variables.number("TORCHELASTIC_RESTART_COUNT", 0).value_or(0);
  environment.run_id = variables.text("TORCHELASTIC_RUN_ID").value_or("");
}

}  // namespace

RankEnvironment read_rank_environment(const Getter& get) {
  const Variables variables(get ? get : of_process);
  RankEnvironment environment;
  environment.error_file = variables.text("TORCHELASTIC_ERROR_FILE").value_or("");
  const std::optional<Names> launcher = find_launcher(variables);
  if (!launcher) return environment;
  environment.launched = true;
  read_world(variables, *launcher, environment);
  read_store(variables, environment);
  return environment;
}

}  // namespace satune
