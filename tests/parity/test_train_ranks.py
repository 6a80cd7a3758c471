"""`satune train` as several ranks, started by itself and by torchrun: what a user sees and scripts rely on."""

import fcntl
import json
import os
import signal
import subprocess
import time

import pytest
from programs import call, refused
from test_train_command import ROOT, tiny  # noqa: F401 (tiny is a fixture)

TORCHRUN = ROOT / ".venv" / "bin" / "torchrun"
QUIET = os.environ | {"GOMP_SPINCOUNT": "0"}


def rank_environment(rank, size):
    return QUIET | {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}


def rows_of(folder):
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_dry_run_plans_for_the_ranks_and_starts_none(satune, tiny, tmp_path):
    arguments = ["train", tiny / "config.json", f"output_dir={tmp_path / 'run'}", "--dry-run"]
    assert "8 rows = 1 a micro-batch x 2 accumulated x 4 ranks" in call(
        satune, *arguments, "--nproc-per-node", "4").stdout
    assert "x 3 ranks" in call(satune, *arguments, env=rank_environment(0, 3)).stdout
    assert call(satune, *arguments, env=rank_environment(1, 3)).stdout == "", "one of the ranks prints"
    assert not (tmp_path / "run").exists()


def test_dry_run_plans_the_memory_of_each_rank(satune, tiny, tmp_path):
    """What `satune plan` says, whoever is to start the ranks."""
    settings = [tiny / "config.json", "packing=true", "zero_stage=3", f"output_dir={tmp_path / 'run'}"]

    def planned(ranks, stage):
        table = call(satune, "plan", *settings, "--device", "cpu", "--world-size", ranks).stdout
        (totals,) = [line.split()[1:] for line in table.splitlines() if line.startswith("total ")]
        return " ".join(totals[2 * stage:2 * stage + 2])

    def estimated(*arguments, env=QUIET):
        report = call(satune, "train", *settings, "--dry-run", *arguments, env=env).stdout
        (line,) = [line for line in report.splitlines() if line.startswith("memory ")]
        return line.split(" ", 1)[1].strip()

    alone, of_four = planned(1, 0), planned(4, 3)
    assert alone != of_four
    assert estimated().startswith(f"{alone} estimated")
    for line in (estimated("--nproc-per-node", "4"), estimated(env=rank_environment(0, 4))):
        assert line.startswith(f"{of_four} a rank estimated") and line.endswith("for each of its 4 ranks"), line
    two_machines = rank_environment(0, 4) | {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
    assert estimated(env=two_machines).startswith(f"{of_four} a rank estimated")
    assert estimated(env=two_machines).endswith("for each of its 2 ranks")


def test_options_for_the_launcher_are_refused_in_a_rank(satune, tiny):
    for option in ("--nproc-per-node=2", "--max-restarts=1"):
        line = refused(satune, "train", tiny / "config.json", option, env=rank_environment(1, 2))
        assert option.split("=")[0] in line and "rank 1 of 2" in line


def test_options_out_of_range(satune, tiny):
    config = tiny / "config.json"
    assert "found 0, expected 1 or more" in refused(satune, "train", config, "--nproc-per-node", "0")
    lines = call(satune, "train", config, "--nproc-per-node", "3", "shard_group_size=2", code=2).stderr.splitlines()
    assert lines == ["satune: error: command line: shard_group_size: found 2, expected a divisor of the number of processes, 3"]
    assert "found -1, expected 0 or more" in refused(satune, "train", config, "--max-restarts", "-1")
    assert "resume auto" in refused(satune, "train", config, "--max-restarts", "1", "--resume", "never")
    assert "found save_only_model=true, expected snapshots" in refused(
        satune, "train", config, "--max-restarts", "1", "save_only_model=true")
    assert "--nproc-per-node" in refused(satune, "train", config, "--nproc-per-node", "two")


def test_an_error_of_all_ranks_is_one_line(satune, tiny, tmp_path):
    done = call(satune, "--log-level", "off", "train", tiny / "config.json", "train_file=/nowhere.json",
                f"output_dir={tmp_path / 'run'}", "--nproc-per-node", "2", code=2, env=QUIET)
    lines = [line for line in done.stderr.splitlines() if "/nowhere.json" in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("satune: error: rank ") and "found no such file" in lines[0]


def test_two_ranks_finish_and_say_so_once(satune, tiny, tmp_path):
    run = tmp_path / "run"
    done = call(satune, "train", tiny / "config.json", f"output_dir={run}", "--nproc-per-node", "2", env=QUIET)
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 5, 6]
    assert sum("step 6/6" in line for line in done.stderr.splitlines() + done.stdout.splitlines()) == 1
    assert (run / "export" / "config.json").exists()


class Running:
    """Ranks that train until they are told to stop."""

    def __init__(self, satune, tiny, run, *more, program=(), **variables):
        self.folder = run
        self.log = (run.parent / f"{run.name}.log").open("w+")
        command = [*program, satune, "train", tiny / "config.json", f"output_dir={run}", "max_steps=100000",
                   "eval_steps=0", "save_steps=20", "export_at_end=false", *more]
        self.process = subprocess.Popen(list(map(str, command)), env=QUIET | variables, stdout=self.log,
                                        stderr=subprocess.STDOUT)

    def text(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def await_steps(self, count):
        end = time.monotonic() + 90
        while len(rows_of(self.folder)) < count:
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.05)

    def await_text(self, words):
        end = time.monotonic() + 90
        while words not in self.text():
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.05)

    def ranks(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(word) for word in file.read().split()]

    def wait(self):
        return self.process.wait(timeout=90)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def test_a_stop_saves_once_on_all_ranks_and_ends_with_4(satune, tiny, tmp_path):
    with Running(satune, tiny, tmp_path / "run", "--nproc-per-node", "2") as running:
        running.await_steps(3)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 4, running.text()
        (snapshot,) = (tmp_path / "run" / "snapshots").iterdir()
        assert snapshot.name == f"step-{len(rows_of(tmp_path / 'run')):08}"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_waits_for_ranks_that_load(satune, tiny, tmp_path, number):
    """Sent as soon as there are ranks, long before they have read their libraries: they would die of it."""
    with Running(satune, tiny, tmp_path / "run", "--nproc-per-node", "2", "max_steps=3") as running:
        end = time.monotonic() + 30
        while len(running.ranks()) < 2:
            assert time.monotonic() < end
        running.process.send_signal(number)
        assert running.wait() == (4 if number == signal.SIGTERM else 0), running.text()
        assert "killed" not in running.text() and "was ended by" not in running.text()
        if number == signal.SIGTERM:
            assert "stopped by a signal: no step was done" in running.text()


def test_the_next_launcher_removes_what_a_killed_one_left(satune, tiny, tmp_path):
    host = os.uname().nodename
    left, held, other = (tmp_path / f"satune-ranks-{name}" for name in (f"{host}-abcdef", f"{host}-held42", "elsewhere-abcdef"))
    for folder in (left, held, other):
        folder.mkdir()
        (folder / "0-1.json").write_text("{}")
        os.utime(folder, (time.time() - 3600,) * 2)
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with Running(satune, tiny, tmp_path / "run", "--nproc-per-node", "2", "max_steps=1", "warmup_steps=0",
                     TMPDIR=str(tmp_path)) as running:
            assert running.wait() == 0, running.text()
    finally:
        os.close(descriptor)
    assert {path.name for path in tmp_path.glob("satune-ranks-*")} == {held.name, other.name}


def test_where_a_script_asks_for_a_file_a_stop_ends_with_0(satune, tiny, tmp_path):
    stopped = tmp_path / "stopped"
    stopped.write_text("of an earlier attempt")
    for ranks in ("1", "2"):
        with Running(satune, tiny, tmp_path / f"run-{ranks}", "--nproc-per-node", ranks,
                     SATUNE_STOPPED_FILE=str(stopped)) as running:
            running.await_steps(2)
            assert not stopped.exists()
            running.process.send_signal(signal.SIGTERM)
            assert running.wait() == 0, running.text()
            assert stopped.exists()


def test_a_killed_rank_is_named_and_the_run_started_again(satune, tiny, tmp_path):
    with Running(satune, tiny, tmp_path / "run", "--nproc-per-node", "2", "--max-restarts", "1",
                 "save_steps=4") as running:
        running.await_steps(6)
        os.kill(running.ranks()[1], signal.SIGKILL)
        running.await_text("restart 1 of 1 after: rank 1: killed by SIGKILL")
        killed_at = len(rows_of(tmp_path / "run"))
        running.await_steps(killed_at + 6)
        assert "continuing after step" in running.text()
        steps = [row["step"] for row in rows_of(tmp_path / "run")]
        assert steps == list(range(1, len(steps) + 1)), "each step once"
        os.kill(running.ranks()[0], signal.SIGKILL)
        assert running.wait() == 3, running.text()
        assert "satune: error: rank 0: killed by SIGKILL" in running.text().splitlines()


@pytest.mark.skipif(not TORCHRUN.exists(), reason=f"torchrun is not at {TORCHRUN}")
def test_torchruns_summary_names_the_cause(satune, tiny, tmp_path):
    command = [TORCHRUN, "--standalone", "--local-addr", "127.0.0.1", "--no-python", "--nproc-per-node", "2", satune,
               "train", tiny / "config.json", "train_file=/nowhere.json", f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(list(map(str, command)), env=QUIET, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    summary = done.stderr[done.stderr.index("Root Cause"):]
    assert "/nowhere.json: found no such file" in summary, done.stderr


@pytest.mark.skipif(not TORCHRUN.exists(), reason=f"torchrun is not at {TORCHRUN}")
def test_the_script_around_torchrun_stops_and_continues(satune, tiny, tmp_path):
    run = tmp_path / "run"
    command = [ROOT / "launch" / "train.sh", tiny / "config.json", f"output_dir={run}", "export_at_end=false",
               "eval_steps=0", "max_steps=100000"]
    environment = QUIET | {"NPROC": "2", "SATUNE": str(satune), "TORCHRUN": str(TORCHRUN), "MAX_RESTARTS": "2"}
    for expected in (1, 2):
        before = len(rows_of(run))
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        end = time.monotonic() + 90
        while len(rows_of(run)) < before + 3 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.terminate()
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 4, f"stop {expected}: {output}"
        steps = [row["step"] for row in rows_of(run)]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) >= before + 3
