"""Ranks that a real mpirun starts on two machines (nodes.py) through launch/train_mpi.sh."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from nodes import Network
from programs import ROOT
from ranks import ENVIRONMENT, await_rows, rows, run, same_state, settings, snapshots, state, trajectory

RANKS, STEPS = 4, 16
CHANGES = {"max_steps": STEPS, "zero_stage": 2, "gradient_accumulation_steps": 12 // RANKS}
# What ssh is to mpirun: `shell.py HOST COMMAND...` runs a command over there and ends with its code. `shell.py` alone
# answers on a machine.
REMOTE_SHELL = """#!{python}
import socket, subprocess, sys
if len(sys.argv) > 1:
    with socket.create_connection((sys.argv[1], 2222), timeout=20) as line:
        line.sendall(" ".join(sys.argv[2:]).encode())
        line.shutdown(socket.SHUT_WR)
        sys.exit(int(line.makefile().read() or 255))
server = socket.create_server(("", 2222))
print("ready", flush=True)
while True:
    line, _ = server.accept()
    code = subprocess.run(["sh", "-c", line.makefile().read()], stdin=subprocess.DEVNULL).returncode
    line.sendall(str(code).encode())
    line.close()
"""


@pytest.fixture
def cluster(tmp_path):
    """Two nodes that mpirun reaches; (network, environment of train_mpi.sh)."""
    if shutil.which("mpirun") is None:
        pytest.skip("Open MPI is not installed")
    shell = tmp_path / "shell.py"
    shell.write_text(REMOTE_SHELL.format(python=sys.executable))
    shell.chmod(0o755)
    network, log, hosts = Network(2, tmp_path), tmp_path / "shell.log", tmp_path / "hosts"
    try:
        answering = network.nodes[1].start([shell], ENVIRONMENT, log)
        while log.read_text() != "ready\n":
            assert answering.poll() is None, log.read_text()
            time.sleep(0.02)
        hosts.write_text("".join(f"{node.address} slots={RANKS // 2}\n" for node in network.nodes))
        yield network, ENVIRONMENT | {
            "HOSTFILE": str(hosts), "OMPI_MCA_plm_rsh_agent": str(shell), "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    finally:
        network.end()


class Launch:
    """launch/train_mpi.sh on the first node."""

    def __init__(self, cluster, satune, config, log):
        network, environment = cluster
        self.log = log
        self.process = network.nodes[0].start([ROOT / "launch" / "train_mpi.sh", RANKS, config],
                                              environment | {"SATUNE": satune}, log)

    def send(self, number):
        # The process here is nsenter's, which passes no signal on.
        (script,) = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(script), number)

    def end(self, code):
        try:
            found = self.process.wait(90)
        except subprocess.TimeoutExpired:
            found = None
        assert found == code, self.log.read_text()


def test_mpirun_on_two_nodes_stops_and_goes_on_as_one_host_does(satune, model, cluster, tmp_path):
    """SIGTERM to the script saves; the same command continues, to the bits of ranks without a network between them."""
    output, reference = tmp_path / "run", tmp_path / "one-host"
    run(satune, settings(model, reference, **CHANGES), RANKS, tmp_path / "logs")

    config = settings(model, output, **CHANGES)
    first = Launch(cluster, satune, config, tmp_path / "first.log")
    await_rows(output, 2)
    first.send(signal.SIGTERM)
    first.end(4)
    stopped = len(rows(output))
    assert stopped < STEPS, "the run was stopped in the middle"
    assert snapshots(output)[-1] == f"step-{stopped:08}"

    Launch(cluster, satune, config, tmp_path / "again.log").end(0)
    assert trajectory(output) == trajectory(reference)
    assert same_state(state(output, STEPS), state(reference, STEPS))


def test_mpirun_ends_with_an_error_when_a_rank_of_the_other_node_dies(satune, model, cluster, tmp_path):
    output = tmp_path / "run"
    launch = Launch(cluster, satune, settings(model, output, **CHANGES), tmp_path / "log")
    await_rows(output, 3)
    cluster[0].nodes[1].call("sh", "-c", "for process in /proc/[0-9]*; do if [ $(cat $process/comm) = satune ]; then "
                             "kill -9 ${process#/proc/}; exit; fi; done")
    assert launch.process.wait(60) not in (0, 4), launch.log.read_text()
    assert re.search(r"^satune: error: rank [23] \(host node-1, pid \d+\) is gone", launch.log.read_text(), re.M)
    assert snapshots(output)
