#include "trainer/rank_environment.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <sys/socket.h>

#include <map>
#include <thread>
#include <vector>

#include "data/files/error.h"
#include "data/files/json.h"
#include "tests/temporary_directory.h"
#include "trainer/network_address.h"
#include "trainer/rank_error_file.h"

namespace satune::trainer_test {
namespace {

using Variables = std::map<std::string, std::string>;

RankEnvironment read(const Variables& variables) {
  return read_rank_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
  });
}

/// What is wrong with `variables`; "" for nothing.
std::string complaint(const Variables& variables) {
  try {
    read(variables);
    return "";
  } catch (const BadInput& error) {
    return error.what();
  }
}

Variables with(Variables variables, const Variables& changes) {
  for (const auto& [name, value] : changes) variables[name] = value;
  return variables;
}

Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}

const Variables& of_torchrun() {
  static const Variables variables = {{"RANK", "5"},
                                      {"WORLD_SIZE", "8"},
                                      {"LOCAL_RANK", "1"},
                                      {"LOCAL_WORLD_SIZE", "4"},
                                      {"MASTER_ADDR", "node1"},
                                      {"MASTER_PORT", "41234"},
                                      {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                      {"TORCHELASTIC_RESTART_COUNT", "2"},
                                      {"TORCHELASTIC_RUN_ID", "job7"},
                                      {"TORCHELASTIC_ERROR_FILE", "/tmp/error.json"}};
  return variables;
}

TEST(RankEnvironment, NothingSetIsAProcessAlone) {
  const RankEnvironment environment = read({});
  EXPECT_FALSE(environment.launched);
  EXPECT_EQ(environment.world.rank, 0);
  EXPECT_EQ(environment.world.size, 1);
  EXPECT_EQ(environment.local_rank, 0);
  EXPECT_EQ(environment.local_world_size, 1);
  EXPECT_EQ(environment.master_address, "127.0.0.1");
  EXPECT_EQ(environment.master_port, 29500);
  EXPECT_FALSE(environment.agent_store);
  EXPECT_EQ(environment.error_file, "");
}

TEST(RankEnvironment, EmptyVariablesAndAnAddressAloneStartNothing) {
  EXPECT_FALSE(read({{"RANK", ""}, {"WORLD_SIZE", ""}, {"MASTER_ADDR", "node1"}}).launched);
}

TEST(RankEnvironment, ReadsTheProcessByDefault) {
  ::setenv("TORCHELASTIC_ERROR_FILE", "/tmp/of-this-process.json", 1);
  EXPECT_EQ(read_rank_environment().error_file, "/tmp/of-this-process.json");
  ::unsetenv("TORCHELASTIC_ERROR_FILE");
  EXPECT_EQ(read_rank_environment().error_file, "");
}

TEST(RankEnvironment, ReadsWhatTorchrunSets) {
  const RankEnvironment environment = read(of_torchrun());
  EXPECT_TRUE(environment.launched);
  EXPECT_EQ(environment.world.rank, 5);
  EXPECT_EQ(environment.world.size, 8);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.local_world_size, 4);
  EXPECT_EQ(environment.master_address, "node1");
  EXPECT_EQ(environment.master_port, 41234);
  EXPECT_TRUE(environment.agent_store);
  EXPECT_EQ(environment.restart_count, 2);
  EXPECT_EQ(environment.run_id, "job7");
  EXPECT_EQ(environment.error_file, "/tmp/error.json");
}

TEST(RankEnvironment, OneProcessPerPodNeedsNoLocalVariables) {
  const RankEnvironment environment =
      read({{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "job-master-0"}, {"MASTER_PORT", "23456"}});
  EXPECT_EQ(environment.world.rank, 3);
  EXPECT_EQ(environment.local_rank, 0);
  EXPECT_EQ(environment.local_world_size, 1);
}

TEST(RankEnvironment, AWorldOfOneIsAProcessAloneThatWasLaunched) {
  const RankEnvironment environment = read({{"WORLD_SIZE", "1"}});
  EXPECT_TRUE(environment.launched);
  EXPECT_EQ(environment.world.size, 1);
  EXPECT_EQ(environment.world.rank, 0);
}

TEST(RankEnvironment, RanksOfOneMachineNeedNoAddress) {
  const RankEnvironment environment =
      read({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}});
  EXPECT_EQ(environment.master_address, "127.0.0.1");
  EXPECT_EQ(environment.master_port, 29500);
}

TEST(RankEnvironment, MalformedVariablesAreNamed) {
  const auto changed = [](const Variables& changes) { return complaint(with(of_torchrun(), changes)); };
  EXPECT_EQ(changed({{"RANK", "five"}}), "RANK: found \"five\", expected a whole number from 0");
  EXPECT_EQ(changed({{"RANK", "-1"}}), "RANK: found \"-1\", expected a whole number from 0");
  EXPECT_EQ(changed({{"RANK", "5 "}}), "RANK: found \"5 \", expected a whole number from 0");
  EXPECT_EQ(changed({{"WORLD_SIZE", "0"}}), "WORLD_SIZE: found \"0\", expected a whole number from 1");
  EXPECT_EQ(changed({{"WORLD_SIZE", "99999999999999999999"}}),
            "WORLD_SIZE: found \"99999999999999999999\", expected a whole number from 1");
  EXPECT_EQ(changed({{"LOCAL_RANK", "0x1"}}), "LOCAL_RANK: found \"0x1\", expected a whole number from 0");
  EXPECT_EQ(changed({{"MASTER_PORT", "65536"}}),
            "MASTER_PORT: found \"65536\", expected a whole number from 1 to 65535");
  EXPECT_EQ(changed({{"TORCHELASTIC_RESTART_COUNT", "x"}}),
            "TORCHELASTIC_RESTART_COUNT: found \"x\", expected a whole number from 0");
  EXPECT_EQ(changed({{"TORCHELASTIC_USE_AGENT_STORE", "maybe"}}),
            "TORCHELASTIC_USE_AGENT_STORE: found \"maybe\", expected True or False");
}

TEST(RankEnvironment, ContradictionsAreNamed) {
  const auto changed = [](const Variables& changes) { return complaint(with(of_torchrun(), changes)); };
  EXPECT_EQ(changed({{"RANK", "8"}}), "RANK: found 8, expected a rank below WORLD_SIZE=8");
  EXPECT_EQ(changed({{"LOCAL_RANK", "4"}}), "LOCAL_RANK: found 4, expected a rank below LOCAL_WORLD_SIZE=4");
  EXPECT_EQ(changed({{"LOCAL_WORLD_SIZE", "9"}}), "LOCAL_WORLD_SIZE: found 9, expected at most WORLD_SIZE=8");
}

TEST(RankEnvironment, MissingVariablesAreNamed) {
  const auto less = [](const std::string& name) { return complaint(without(of_torchrun(), name)); };
  EXPECT_EQ(less("WORLD_SIZE"), "WORLD_SIZE: found nothing beside RANK, expected the number of ranks");
  EXPECT_EQ(less("RANK"), "RANK: found nothing beside WORLD_SIZE=8, expected the rank");
  EXPECT_EQ(
      less("LOCAL_WORLD_SIZE"),
      "LOCAL_WORLD_SIZE: found nothing beside LOCAL_RANK, expected the number of ranks on this machine");
  EXPECT_EQ(less("LOCAL_RANK"),
            "LOCAL_RANK: found nothing beside LOCAL_WORLD_SIZE, expected the rank on this machine");
  EXPECT_EQ(
      less("MASTER_ADDR"),
      "MASTER_ADDR: found nothing beside 8 ranks of which 4 are on this machine, expected the address of "
      "rank 0's machine");
  EXPECT_EQ(complaint({{"LOCAL_RANK", "1"}}),
            "RANK: found nothing beside LOCAL_RANK, expected the rank, or none of these variables");
}

TEST(RankEnvironment, ReadsWhatOpenMpiSets) {
  const Variables variables = {{"OMPI_COMM_WORLD_RANK", "3"},
                               {"OMPI_COMM_WORLD_SIZE", "4"},
                               {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                               {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}};
  const RankEnvironment environment = read(variables);
  EXPECT_TRUE(environment.launched);
  EXPECT_EQ(environment.world.rank, 3);
  EXPECT_EQ(environment.world.size, 4);
  EXPECT_EQ(environment.local_rank, 3);
  EXPECT_EQ(environment.local_world_size, 4);
  EXPECT_EQ(complaint(with(variables, {{"OMPI_COMM_WORLD_RANK", "4"}})),
            "OMPI_COMM_WORLD_RANK: found 4, expected a rank below OMPI_COMM_WORLD_SIZE=4");
  EXPECT_EQ(complaint(without(variables, "OMPI_COMM_WORLD_SIZE")),
            "OMPI_COMM_WORLD_SIZE: found nothing beside OMPI_COMM_WORLD_RANK, expected the number of ranks");
  // A script's WORLD_SIZE has to agree; RANK goes before everything.
  EXPECT_EQ(complaint(with(variables, {{"WORLD_SIZE", "4"}})), "");
  EXPECT_EQ(complaint(with(variables, {{"WORLD_SIZE", "8"}})),
            "WORLD_SIZE: found 8, expected OMPI_COMM_WORLD_SIZE=4");
  EXPECT_EQ(read(with(of_torchrun(), variables)).world.rank, 5);
}

const Variables& of_srun() {
  static const Variables variables = {{"SLURM_JOB_ID", "1"},
                                      {"SLURM_STEP_ID", "0"},
                                      {"SLURM_NTASKS", "5"},
                                      {"SLURM_STEP_NUM_TASKS", "5"},
                                      {"SLURM_STEP_TASKS_PER_NODE", "2(x2),1"},
                                      {"SLURM_PROCID", "3"},
                                      {"SLURM_LOCALID", "1"},
                                      {"SLURM_NODEID", "1"},
                                      {"MASTER_ADDR", "node1"}};
  return variables;
}

TEST(RankEnvironment, ReadsWhatSrunSets) {
  RankEnvironment environment = read(of_srun());
  EXPECT_TRUE(environment.launched);
  EXPECT_EQ(environment.world.rank, 3);
  EXPECT_EQ(environment.world.size, 5);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.local_world_size, 2);
  environment = read(with(of_srun(), {{"SLURM_PROCID", "4"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "2"}}));
  EXPECT_EQ(environment.local_world_size, 1);
  // Under torchrun's name set by a script.
  EXPECT_EQ(read(with(of_srun(), {{"LOCAL_WORLD_SIZE", "4"}})).local_world_size, 4);
  // Without the step's own variables, those of the job.
  Variables job = without(without(of_srun(), "SLURM_STEP_NUM_TASKS"), "SLURM_STEP_TASKS_PER_NODE");
  job["SLURM_TASKS_PER_NODE"] = "5";
  job["SLURM_NODEID"] = "0";
  EXPECT_EQ(read(job).world.size, 5);
  EXPECT_EQ(read(job).local_world_size, 5);
  for (const char* list : {"2(x", "2(x0)", "two", "2,,1", "0", "2(x1)"}) {
    EXPECT_TRUE(complaint(with(of_srun(), {{"SLURM_STEP_TASKS_PER_NODE", list}}))
                    .starts_with("SLURM_STEP_TASKS_PER_NODE: found \"" + std::string(list) + "\""))
        << list;
  }
}

TEST(RankEnvironment, AShellOfSlurmIsNotARank) {
  // sbatch's script: the allocation's size, process 0, no step.
  EXPECT_FALSE(read(without(without(of_srun(), "SLURM_STEP_ID"), "SLURM_STEP_NUM_TASKS")).launched);
  // salloc's shell.
  EXPECT_FALSE(read({{"SLURM_JOB_ID", "1"}, {"SLURM_NTASKS", "8"}}).launched);
  // srun --pty bash in an allocation of 8.
  EXPECT_FALSE(
      read(with(of_srun(), {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}}))
          .launched);
}

TEST(ErrorFile, HoldsTheFirstCauseAlone) {
  const TemporaryDirectory directory;
  RankEnvironment environment;
  environment.error_file = (directory / "error.json").string();
  const auto before = std::time(nullptr);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] { write_error_file(environment, "cause " + std::to_string(i), i); });
  }
  for (auto& thread : threads) thread.join();
  const std::string first = content_of(environment.error_file);
  write_error_file(environment, "a later cause", 3);
  EXPECT_EQ(content_of(environment.error_file), first);
  EXPECT_EQ(entries_of(directory.path()), std::vector<std::string>{"error.json"});
  const Json message = parse_json(first, "error file")["message"];
  EXPECT_EQ(message["message"], "cause " + std::to_string(message["errorCode"].get<int>()));
  EXPECT_EQ(message["extraInfo"]["py_callstack"], message["message"]);
  const std::string stamp = message["extraInfo"]["timestamp"];
  EXPECT_GE(std::stoll(stamp), before);
}

TEST(ErrorFile, AnyBytesMakeJson) {
  const TemporaryDirectory directory;
  RankEnvironment environment;
  environment.error_file = (directory / "error.json").string();
  write_error_file(environment, "record 7: \xff\xfe \"quoted\"\nsecond line", 2);
  const Json message = parse_json(content_of(environment.error_file), "error file")["message"];
  EXPECT_EQ(message["message"], "record 7: \xef\xbf\xbd\xef\xbf\xbd \"quoted\"\nsecond line");
}

TEST(ErrorFile, NowhereToWriteIsNoError) {
  RankEnvironment environment;
  write_error_file(environment, "x", 1);
  environment.error_file = "/no/such/folder/error.json";
  write_error_file(environment, "x", 1);
}

TEST(NetworkAddress, IsTheSourceTowardsTheMaster) {
  RankEnvironment environment;
  environment.world.size = environment.local_world_size = 2;
  EXPECT_EQ(network_address(environment), "127.0.0.1");
  environment.master_address = "localhost";
  const std::string local = network_address(environment);
  EXPECT_TRUE(local == "127.0.0.1" || local == "::1") << local;
}

TEST(NetworkAddress, OfAnUnknownHostIsAnError) {
  RankEnvironment environment;
  environment.master_address = "no-such-host.invalid";
  try {
    network_address(environment);
    FAIL();
  } catch (const EnvironmentError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("MASTER_ADDR no-such-host.invalid: ")) << error.what();
  }
}

TEST(NetworkAddress, IsThatOfTheDefaultRoutesInterface) {
  constexpr unsigned int kRunning = IFF_UP | IFF_RUNNING;
  const std::vector<InterfaceAddress> addresses = {
      {"lo", kRunning | IFF_LOOPBACK, AF_INET, false, "127.0.0.1"},
      {"docker0", IFF_UP, AF_INET, false, "172.17.0.1"},
      {"br0", kRunning, AF_INET, false, "172.18.0.1"},
      {"eth0", kRunning, AF_INET6, true, "fe80::1%eth0"},
      {"eth0", kRunning, AF_INET6, false, "2001:db8::7"},
      {"eth0", kRunning, AF_INET, false, "10.0.0.7"},
      {"ib0", kRunning, AF_INET6, false, "2001:db8::8"}};
  const auto chosen = [&](const std::optional<std::string>& route, size_t count = 7) -> std::string {
    const auto* address = choose_interface(std::span(addresses).first(count), route);
    return address == nullptr ? "" : address->address;
  };
  EXPECT_EQ(chosen("eth0"), "10.0.0.7");
  EXPECT_EQ(chosen("ib0"), "2001:db8::8");
  EXPECT_EQ(chosen(std::nullopt), "172.18.0.1") << "no default route";
  EXPECT_EQ(chosen("gone"), "172.18.0.1");
  EXPECT_EQ(chosen("docker0", 2), "") << "a bridge without containers";
}

TEST(NetworkAddress, ReadsTheKernelsRoutes) {
  const std::string head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n";
  EXPECT_EQ(default_route_interface(head), std::nullopt);
  EXPECT_EQ(default_route_interface(head + "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n"),
            std::nullopt);
  EXPECT_EQ(default_route_interface(head + "wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\n" +
                                    "eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\n" +
                                    "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n"),
            "eth0");
}

TEST(NetworkAddress, IsNotTheLoopbackWhenRanksAreElsewhere) {
  RankEnvironment environment;
  environment.world.size = 2;  // one of them here
  try {
    const std::string address = network_address(environment);
    EXPECT_FALSE(address.starts_with("127.")) << address;
    EXPECT_NE(address, "::1");
  } catch (const EnvironmentError& error) {
    // A machine without a network.
    EXPECT_TRUE(std::string(error.what()).starts_with("network interfaces: found none")) << error.what();
  }
}

}  // namespace
}  // namespace satune::trainer_test
