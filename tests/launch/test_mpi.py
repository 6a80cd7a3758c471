"""launch/train_mpi.sh over a stand-in for mpirun, and over the real one where there is one."""

import os
import shutil
import signal

import pytest
from stand_ins import LAUNCH, Run, refused

FAKE_MPIRUN = r"""#!/bin/bash
# Starts ranks with the variables that are named, as children, beside a child that is none of them.
printf '%s\n' "$@" >"$OUT/mpirun"
processes=$2 named=()
while [[ $1 != */satune ]]; do
  if [[ $1 == -x ]]; then named+=("$2=${!2}"); fi
  shift
done
bash -c 'trap "touch $OUT/ssh-signalled" TERM; while [[ ! -e $OUT/end-ssh ]]; do sleep 0.05; done' &
other=$! started=() code=0
for ((rank = 0; rank < processes; ++rank)); do
  env -u MASTER_ADDR -u MASTER_PORT -u SATUNE_STOPPED_FILE "${named[@]}" OMPI_COMM_WORLD_RANK=$rank \
    OMPI_COMM_WORLD_SIZE=$processes "$@" &
  started+=($!)
done
for id in "${started[@]}"; do wait "$id" || code=$?; done
touch "$OUT/end-ssh"
wait "$other"
exit $code
"""


def test_mpi_gives_ranks_a_meeting_place_and_the_arguments(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# the cluster\n\n  127.0.0.9 slots=2 # head\nother slots=2\n")
    with Run(tmp_path, [LAUNCH / "train_mpi.sh", "3", "config.json", "a=b c"], {"mpirun": FAKE_MPIRUN},
             HOSTFILE=str(hosts)) as run:
        run.await_files("env-0-0", "env-1-0", "env-2-0")
        run.go()
        assert run.wait() == 0, run.text()
        for rank in range(3):
            variables = run.environment(rank)
            assert variables["MASTER_ADDR"] == "127.0.0.9" and variables["MASTER_PORT"] == "29500"
            assert variables["SATUNE_STOPPED_FILE"].startswith(str(tmp_path)), "a folder that machines share"
            assert (run.out / f"arguments-{rank}").read_text().splitlines() == ["train", "config.json", "a=b c"]
        given = (run.out / "mpirun").read_text().splitlines()
        assert given[given.index("--hostfile") + 1] == str(hosts)
        assert given[given.index("--bind-to") + 1] == "none"


def test_mpi_stops_ranks_and_nothing_else(tmp_path):
    with Run(tmp_path, [LAUNCH / "train_mpi.sh", "2", "config.json"], {"mpirun": FAKE_MPIRUN}) as run:
        run.await_files("env-0-0", "env-1-0")
        assert run.environment(0)["MASTER_ADDR"] == "127.0.0.1"
        run.process.send_signal(signal.SIGUSR1)
        run.await_signal(1, "USR1")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()
        assert run.signals(0) == run.signals(1) == ["USR1", "TERM"]
        assert not (run.out / "ssh-signalled").exists()
        assert not list(tmp_path.glob(".satune-stopped-*"))


def test_mpi_with_the_real_mpirun(tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("Open MPI is not installed")
    with Run(tmp_path, [LAUNCH / "train_mpi.sh", "2", "config.json"], OMPI_MCA_rmaps_base_oversubscribe="1") as run:
        run.await_files("env-0-0", "env-1-0")
        for rank in (0, 1):
            variables = run.environment(rank)
            assert variables["OMPI_COMM_WORLD_RANK"] == variables["OMPI_COMM_WORLD_LOCAL_RANK"] == str(rank)
            assert variables["OMPI_COMM_WORLD_SIZE"] == variables["OMPI_COMM_WORLD_LOCAL_SIZE"] == "2"
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()
        assert run.signals(0) == run.signals(1) == ["TERM"]


def test_mpi_refuses_what_is_missing(tmp_path):
    assert "usage" in refused("train_mpi.sh", "2")
    assert "found two" in refused("train_mpi.sh", "two", "config.json")
    assert "RANKS: found 0, expected at least 1" in refused("train_mpi.sh", "0", "config.json")
    assert "mpirun" in refused("train_mpi.sh", "2", "c.json", env={"SATUNE": "/bin/true", "MPIRUN": "/nowhere/mpirun"})
    message = refused("train_mpi.sh", "2", "c.json",
                      env={"SATUNE": "/bin/true", "MPIRUN": "/bin/true", "HOSTFILE": str(tmp_path / "none")})
    assert "HOSTFILE" in message
    if os.geteuid() == 0:
        message = refused("train_mpi.sh", "2", "c.json", env={"SATUNE": "/bin/true", "MPIRUN": "/bin/true"})
        assert "found root" in message and "OMPI_ALLOW_RUN_AS_ROOT=1" in message and len(message.splitlines()) == 1
