"""The launch scripts: what ranks get from them, and what becomes of signals and exit codes. The program is a
stand-in; torchrun is the real one."""

import fcntl
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import termios
import time

import pytest
from stand_ins import LAUNCH, ROOT, STAND_IN, Run, free_port, refused, write_program

TORCHRUN = ROOT / ".venv" / "bin" / "torchrun"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm" / "train.sbatch"])

needs_torchrun = pytest.mark.skipif(not TORCHRUN.exists(), reason=f"torchrun is not at {TORCHRUN}")


# ---- all scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    if not script.name.startswith(("lib_", "jobs")):
        assert os.access(script, os.X_OK), f"{script} is not executable"


def test_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    run = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", ["train.sh", "train_nodes.sh", "train_mpi.sh"])
def test_help_names_every_variable_that_is_read(script):
    text = subprocess.run([LAUNCH / script, "--help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  ([A-Z_]+) ", text, re.M))
    libraries = ["lib_ranks.sh"] + ([] if script == "train_mpi.sh" else ["lib_torchrun.sh"])
    source = "".join((LAUNCH / name).read_text() for name in [script, *libraries])
    read = set(re.findall(r"\$\{([A-Z_]+):-", source)) | ({"NNODES", "NODE_RANK", "HEAD"} if "nodes" in script else set())
    assert listed == read - {"CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize("visible, processes", [(None, 3), ("0,2", 2), ("", 1), ("-1", 1), ("0,1,2,3,4", 3)])
def test_one_rank_for_each_card(tmp_path, visible, processes):
    source = (LAUNCH / "lib_ranks.sh").read_text().replace("/dev/nvidia", str(tmp_path / "nvidia"))
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl"):
        (tmp_path / name).touch()
    environment = {"PATH": os.environ["PATH"]} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    run = subprocess.run(["bash", "-c", source + "\ndefault_processes"], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [str(processes)], run.stderr


def test_one_rank_without_cards(tmp_path):
    source = (LAUNCH / "lib_ranks.sh").read_text().replace("/dev/nvidia", str(tmp_path / "nvidia"))
    run = subprocess.run(["bash", "-c", source + "\ndefault_processes"], capture_output=True, text=True)
    assert run.stdout.split() == ["1"], run.stderr


# ---- torchrun


@needs_torchrun
def test_train_gives_ranks_torchruns_variables_and_the_arguments(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json", "a.b=c d", "--resume", "auto"], NPROC="2",
             TORCHRUN=str(TORCHRUN)) as run:
        run.await_files("env-0-0", "env-1-0")
        run.go()
        assert run.wait() == 0, run.text()
        for rank in (0, 1):
            variables = run.environment(rank)
            assert variables["RANK"] == variables["LOCAL_RANK"] == str(rank)
            assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "2"
            assert variables["MASTER_ADDR"] == "127.0.0.1"
            assert variables["TORCHELASTIC_USE_AGENT_STORE"] == "True"
            assert variables["TORCHELASTIC_ERROR_FILE"]
            arguments = (run.out / f"arguments-{rank}").read_text().splitlines()
            assert arguments == ["train", "config.json", "a.b=c d", "--resume", "auto"]
        assert not pathlib.Path(run.environment(0)["SATUNE_STOPPED_FILE"]).parent.exists()


@needs_torchrun
def test_train_passes_signals_to_ranks_once_and_ends_with_4(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), MAX_RESTARTS="3") as run:
        run.await_files("env-0-0", "env-1-0")
        run.process.send_signal(signal.SIGUSR1)
        run.await_signal(0, "USR1")
        run.await_signal(1, "USR1")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()
        assert run.signals(0) == run.signals(1) == ["USR1", "TERM"]
        assert not (run.out / "env-0-1").exists(), "a stop is not a failure that starts the ranks again"


@needs_torchrun
def test_train_starts_ranks_again_after_a_failure(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), MAX_RESTARTS="1",
             FAILING_RANK="1") as run:
        run.await_files("env-0-1", "env-1-1")
        run.go()
        assert run.wait() == 0, run.text()


@needs_torchrun
def test_train_fails_where_a_rank_does(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="1", TORCHRUN=str(TORCHRUN), FAILING_RANK="0") as run:
        assert run.wait() == 1, run.text()


@needs_torchrun
def test_train_ends_with_the_code_of_the_rank_that_failed(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), FAILING_RANK="1",
             FAILING_WITH_A_FILE="yes") as run:
        assert run.wait() == 3, run.text()
        assert "Root Cause" in run.text(), run.text()


@needs_torchrun
def test_stop_before_there_are_ranks_ends_with_4(tmp_path):
    slow = write_program(tmp_path / "slow" / "torchrun", '#!/bin/bash\ntouch "$OUT/started"\nexec sleep 60\n')
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(slow)) as run:
        run.await_files("started")
        time.sleep(0.1)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()


@needs_torchrun
def test_signals_wait_for_ranks_that_load(tmp_path):
    """A rank dies of what it does not handle yet."""
    for number, name in ((signal.SIGUSR1, "USR1"), (signal.SIGTERM, "TERM")):
        folder = tmp_path / name
        folder.mkdir()
        with Run(folder, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), LOADING_SECONDS="2") as run:
            run.await_files("loading-0", "loading-1")
            run.process.send_signal(number)
            for rank in (0, 1):
                run.await_signal(rank, name)
            run.go()
            assert run.wait() == (4 if name == "TERM" else 0), run.text()
            assert run.signals(0) == run.signals(1) == [name]
            assert "Traceback" not in run.text() and "exitcode" not in run.text()


@needs_torchrun
def test_a_second_stop_ends_ranks_without_handlers(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), LOADING_SECONDS="60") as run:
        run.await_files("loading-0", "loading-1")
        run.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143, run.text()


@needs_torchrun
def test_a_second_stop_ends_with_the_code_of_the_signal(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), STUBBORN="yes") as run:
        run.await_files("env-0-0", "env-1-0")
        run.process.send_signal(signal.SIGTERM)
        run.await_files("asked-0", "asked-1")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143, run.text()


@needs_torchrun
def test_ctrl_c_reaches_ranks_once(tmp_path):
    master, terminal = pty.openpty()

    def on_terminal():
        # A shell's background job, as this may be in one, ignores it; no script can trap what it was born ignoring.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    out = tmp_path / "out"
    out.mkdir()
    program = write_program(tmp_path / "satune", STAND_IN)
    environment = os.environ | {"OUT": str(out), "SATUNE": str(program), "NPROC": "2", "TORCHRUN": str(TORCHRUN)}
    process = subprocess.Popen([LAUNCH / "train.sh", "config.json"], env=environment, stdin=terminal,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=on_terminal)
    try:
        end = time.monotonic() + 60
        while not all((out / f"env-{rank}-0").exists() for rank in (0, 1)):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        os.write(master, b"\x03")
        assert process.wait(timeout=60) == 4
        assert [(out / f"signals-{rank}").read_text() for rank in (0, 1)] == ["INT\n", "INT\n"]
    finally:
        (out / "go").touch()
        if process.poll() is None:
            process.kill()
        os.close(master)
        os.close(terminal)


@needs_torchrun
def test_nodes_form_one_run(tmp_path):
    port = str(free_port())
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()

    def node(folder, rank):
        return Run(folder, [LAUNCH / "train_nodes.sh", "config.json", "a=b"], TORCHRUN=str(TORCHRUN), NPROC="1",
                   NNODES="2", NODE_RANK=str(rank), HEAD="127.0.0.1", HEAD_PORT=port)

    with node(tmp_path / "one", 0) as one, node(tmp_path / "other", 1) as other:
        end = time.monotonic() + 90
        while sum(len(list(run.out.glob("env-*"))) for run in (one, other)) < 2:
            assert time.monotonic() < end, one.text() + other.text()
            time.sleep(0.05)
        ranks = {}
        for run in (one, other):
            (file,) = run.out.glob("env-*")
            ranks[int(file.name.split("-")[1])] = run
        assert sorted(ranks) == [0, 1]
        environments = [run.environment(rank) for rank, run in sorted(ranks.items())]
        for variables in environments:
            assert variables["WORLD_SIZE"] == "2"
            assert variables["LOCAL_RANK"] == "0" and variables["LOCAL_WORLD_SIZE"] == "1"
            assert variables["MASTER_ADDR"] == "127.0.0.1"
        assert environments[0]["MASTER_PORT"] == environments[1]["MASTER_PORT"]
        assert environments[0]["TORCHELASTIC_RUN_ID"] == environments[1]["TORCHELASTIC_RUN_ID"]
        for run in (one, other):
            run.process.send_signal(signal.SIGTERM)
        assert [one.wait(), other.wait()] == [4, 4], one.text() + other.text()


@pytest.mark.parametrize("variables, words", [
    ({}, ["NNODES"]),
    ({"NNODES": "2", "NODE_RANK": "0"}, ["HEAD"]),
    ({"NNODES": "two", "NODE_RANK": "0", "HEAD": "h"}, ["NNODES", "found two"]),
    ({"NNODES": "2", "NODE_RANK": "2", "HEAD": "h"}, ["NODE_RANK", "less than NNODES=2"]),
    ({"NNODES": "0", "NODE_RANK": "0", "HEAD": "h"}, ["NNODES", "found 0", "at least 1"]),
    ({"NNODES": "2", "NODE_RANK": "0", "HEAD": "h", "HEAD_PORT": "99999"}, ["HEAD_PORT", "found 99999", "at most 65535"]),
    pytest.param({"NNODES": "2", "NODE_RANK": "0", "HEAD": "h", "NPROC": "0", "SATUNE": "/bin/true"},
                 ["NPROC", "found 0", "at least 1"], marks=needs_torchrun),
    pytest.param({"NNODES": "2", "NODE_RANK": "1", "HEAD": "no.such.host.invalid", "HEAD_WITHIN": "0", "SATUNE": "/bin/true"},
                 ["HEAD", "found no.such.host.invalid", "does not resolve"], marks=needs_torchrun),
    ({"NNODES": "2", "NODE_RANK": "0", "HEAD": "h", "SATUNE": "/nowhere/satune"}, ["/nowhere/satune"]),
    ({"NNODES": "2", "NODE_RANK": "0", "HEAD": "h", "SATUNE": "/bin/true", "TORCHRUN": "/nowhere/torchrun"}, ["/nowhere/torchrun"]),
])
def test_nodes_refuse_what_is_missing(variables, words):
    message = refused("train_nodes.sh", "config.json", env=variables)
    assert len(message.splitlines()) == 1 and all(word in message for word in words), message
