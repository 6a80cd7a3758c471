"""Ranks on several machines (nodes.py): the numbers of one machine, and a link that is cut."""

import re
import time

import pytest
from nodes import Network
from programs import ROOT
from ranks import ENVIRONMENT, await_rows, run, same_state, settings, snapshots, state, trajectory

TORCHRUN = ROOT / ".venv" / "bin" / "torchrun"
RANKS, STEPS = 4, 8
LOST_AFTER = 3
CHANGES = {"max_steps": STEPS, "zero_stage": 3, "gradient_accumulation_steps": 12 // RANKS}


@pytest.fixture
def network(tmp_path):
    """network(count): nodes with a network between them, which end with the test."""
    made = []

    def make(count):
        made.append(Network(count, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="module")
def on_one_host(satune, model, tmp_path_factory):
    """The run of as many ranks without a network between them."""
    output = tmp_path_factory.mktemp("one-host") / "run"
    run(satune, settings(model, output, **CHANGES), RANKS, output.parent / "logs")
    return output


def assert_same_run(output, reference):
    assert trajectory(output) == trajectory(reference)
    assert same_state(state(output, STEPS), state(reference, STEPS))


class Job:
    """Processes on the nodes of a network, each with its log."""

    def __init__(self, logs):
        self.logs, self.processes, self.names = logs, [], []
        logs.mkdir()

    def start(self, node, name, command, environment):
        self.names.append(name)
        self.processes.append(node.start(command, ENVIRONMENT | environment, self.logs / name))

    def log(self, name):
        return (self.logs / name).read_text()

    def everything(self):
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in self.names)

    def errors(self, name):
        return [line for line in self.log(name).splitlines() if line.startswith("satune: error: ")]

    def await_errors(self, count, timeout):
        """Until every process has written so many error lines."""
        end = time.monotonic() + timeout
        while any(len(self.errors(name)) < count for name in self.names):
            assert time.monotonic() < end, self.everything()
            time.sleep(0.05)

    def finish(self, code=0):
        end = time.monotonic() + 60
        codes = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        assert codes == [code] * len(codes), self.everything()


def by_hand(satune, network, config, logs, head=None):
    """The ranks, as many on each node, without a launcher. Logs: "rank-0" ..."""
    job, local_size = Job(logs), RANKS // len(network.nodes)
    for rank in range(RANKS):
        node = network.nodes[rank // local_size]
        job.start(node, f"rank-{rank}", [satune, "train", config],
                  {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank % local_size),
                   "LOCAL_WORLD_SIZE": str(local_size), "MASTER_ADDR": head or network.nodes[0].address,
                   "MASTER_PORT": "29500"})
    return job


def by_torchrun(satune, network, config, logs):
    """Logs: "node-0" ..."""
    if not TORCHRUN.exists():
        pytest.skip(f"no torchrun at {TORCHRUN}")
    job, count = Job(logs), len(network.nodes)
    for node in network.nodes:
        job.start(node, node.name, [ROOT / "launch" / "train_nodes.sh", config],
                  {"NNODES": str(count), "NODE_RANK": str(node.number), "NPROC": str(RANKS // count),
                   "HEAD": network.nodes[0].address, "SATUNE": satune, "TORCHRUN": str(TORCHRUN)})
    return job


def test_two_nodes_under_torchrun_train_as_one_host_does(satune, model, network, on_one_host, tmp_path):
    output = tmp_path / "run"
    by_torchrun(satune, network(2), settings(model, output, **CHANGES), tmp_path / "logs").finish()
    assert_same_run(output, on_one_host)


def test_four_nodes_meet_under_the_name_of_the_first_and_ride_out_a_short_cut(satune, model, network, on_one_host,
                                                                              tmp_path):
    """On the first node its name means the loopback, where the others cannot reach it."""
    output, nodes = tmp_path / "run", network(4)
    job = by_hand(satune, nodes, settings(model, output, **CHANGES), tmp_path / "logs", head=nodes.nodes[0].name)
    await_rows(output, 3)
    nodes.cut(nodes.nodes[1])
    time.sleep(1)
    assert all(process.poll() is None for process in job.processes), job.everything()
    nodes.mend(nodes.nodes[1])
    job.finish()
    assert_same_run(output, on_one_host)


def test_a_machine_without_local_rank_0_has_a_rank_that_is_first_too(satune, model, network, tmp_path):
    """A script that sets LOCAL_RANK to RANK: those of the second node waited for its rank 0 for ever."""
    output, nodes, job = tmp_path / "run", network(2), Job(tmp_path / "logs")
    config = settings(model, output, max_steps=2, gradient_accumulation_steps=6)
    for node in nodes.nodes:
        rank = str(node.number)
        job.start(node, node.name, [satune, "train", config],
                  {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": nodes.nodes[0].address, "MASTER_PORT": "29500"})
    job.finish()


def assert_lost(line, ranks, node):
    """Of several ranks beyond the cut any may be missed first."""
    assert re.match(rf"satune: error: rank [{ranks}] \(host node-{node}, pid \d+\) is lost", line), line


def test_a_cut_link_stops_both_sides_and_the_run_goes_on_when_it_is_mended(satune, model, network, on_one_host, tmp_path):
    output, nodes = tmp_path / "run", network(2)
    config = settings(model, output, heartbeat_timeout=LOST_AFTER, **CHANGES)
    job = by_hand(satune, nodes, config, tmp_path / "logs")
    await_rows(output, 3)
    nodes.cut(nodes.nodes[1])
    start = time.monotonic()
    job.finish(code=3)
    assert time.monotonic() - start < LOST_AFTER + 12
    for rank in range(RANKS):
        (line,) = job.errors(f"rank-{rank}")
        assert_lost(line, *(("23", 1) if rank < 2 else ("0", 0)))
    kept = snapshots(output)
    assert kept and kept[-1] < f"step-{STEPS:08}", "the link was cut in the middle"
    nodes.mend(nodes.nodes[1])
    again = by_hand(satune, nodes, settings(model, output, **CHANGES), tmp_path / "again")
    again.finish()
    assert f"continuing after step {int(kept[-1][-8:])} of {STEPS}" in again.log("rank-0")
    assert_same_run(output, on_one_host)


def test_a_switch_that_drops_everything_stops_the_ranks_of_torchrun(satune, model, network, tmp_path):
    """Nobody sees that the link is gone, and the store of the second node's ranks is beyond it."""
    output, nodes = tmp_path / "run", network(2)
    config = settings(model, output, heartbeat_timeout=LOST_AFTER, **CHANGES)
    job = by_torchrun(satune, nodes, config, tmp_path / "logs")
    await_rows(output, 3)
    nodes.mute(nodes.nodes[1])
    job.await_errors(RANKS // 2, timeout=LOST_AFTER + 12)
    for line in job.errors("node-0"):
        assert_lost(line, "23", 1)
    for line in job.errors("node-1"):
        assert_lost(line, "0", 0)
    assert snapshots(output)
    # torchrun itself waits a minute for the other agent; it ends with its node.
