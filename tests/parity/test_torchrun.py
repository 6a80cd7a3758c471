"""Ranks under torchrun: its variables, its agent's store, its error file, its restarts.

The C++ side is `rank_tool OUT [--fail MESSAGE --failing-rank R --failing-attempt N]`, built beside satune: it
agrees on the attempt, marks its key in the store, fails if it is told to, exchanges rank + 1 over Gloo and
writes OUT/<rank>.json. Its exit code after a failure is 3.
"""

import json
import os
import re
import subprocess
import sys
import time

from programs import free_port
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def torchrun(tool, out, *arguments, processes=2, restarts=0, nodes=("--standalone",)):
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, "--no-python"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts), tool, str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(*agents):
    """Exit codes and stderr of agents, which end with the test."""
    try:
        texts = [agent.communicate(timeout=240)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    return [agent.returncode for agent in agents], texts


def reports(out, size):
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]


def test_ranks_meet_in_the_agents_store(rank_tool, tmp_path):
    codes, texts = finish(torchrun(rank_tool, tmp_path, processes=3))
    assert codes == [0], texts
    for rank, report in enumerate(reports(tmp_path, 3)):
        assert (report["size"], report["local_rank"], report["local_size"]) == (3, rank, 3)
        assert report["agent_store"] and report["sum"] == 6 and not report["stale"]


def test_the_summary_names_the_cause(rank_tool, tmp_path):
    message = 'record 7 of "train.json": broken'
    codes, texts = finish(torchrun(rank_tool, tmp_path, "--fail", message, "--failing-rank", "1"))
    assert codes[0] != 0
    summary = texts[0][texts[0].index("Root Cause") :]
    assert re.search(r"rank +: 1 ", summary) and re.search(r"exitcode +: 3 ", summary), summary
    assert f"traceback : {message}" in summary


def test_the_error_file_is_read_by_torch(rank_tool, tmp_path):
    path = tmp_path / "error.json"
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **variables, "TORCHELASTIC_ERROR_FILE": str(path)}
    begin = int(time.time())
    done = subprocess.run([rank_tool, tmp_path, "--fail", "lost: ünï\n", "--failing-rank", "0"], env=environment)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=done.returncode, error_file=str(path))
    assert failure.message["message"] == failure.message["extraInfo"]["py_callstack"] == "lost: ünï\n"
    assert begin <= failure.timestamp <= time.time()
    assert failure.message["errorCode"] == done.returncode == 3


def test_a_restart_sees_no_key_of_the_failed_attempt(rank_tool, tmp_path):
    codes, texts = finish(torchrun(rank_tool, tmp_path, "--fail", "once", "--failing-rank", "1", restarts=1))
    assert codes == [0], texts
    for report in reports(tmp_path, 2):
        assert report["restart_count"] == 1 and report["sum"] == 3 and not report["stale"]


def test_ranks_meet_again_when_machines_count_restarts_differently(rank_tool, tmp_path):
    """Two agents: the one whose rank has failed counts, the other follows without counting."""
    port = free_port()
    nodes = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=pair"]
    nodes += ["--local-addr=127.0.0.1"]
    fail = ("--fail", "once", "--failing-rank", "1")
    agents = [torchrun(rank_tool, tmp_path, *fail, processes=1, restarts=2, nodes=nodes) for _ in range(2)]
    codes, texts = finish(*agents)
    assert codes == [0, 0], texts
    found = reports(tmp_path, 2)
    assert [report["sum"] for report in found] == [3, 3] and not any(report["stale"] for report in found)
    assert found[0]["attempt"] == found[1]["attempt"]

