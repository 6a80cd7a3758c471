"""No fault loses work: ranks that die, hang or cannot write, and the run that goes on afterwards."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from ranks import (ENVIRONMENT, Ranks, await_rows, fault, rows, run, same_state, settings, snapshots, state,
                   trajectory)

COUNT = 3
CHANGES = {"gradient_accumulation_steps": 4, "zero_stage": 3, "eval_steps": 4}


@pytest.fixture(scope="module")
def undisturbed(satune, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(satune, settings(model, output, **CHANGES), COUNT, output.parent / "logs")
    return output


def goes_on(satune, model, output, undisturbed, logs):
    """The same command again ends as if nothing had happened."""
    run(satune, settings(model, output, **CHANGES), COUNT, logs)
    assert trajectory(output) == trajectory(undisturbed)
    assert same_state(state(output, 8), state(undisturbed, 8))
    leftovers = [path.name for path in (output / "snapshots").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def names_as_lost(error, rank):
    """The watch's word, not an echo of a broken connection nor a healthy rank that takes the blame."""
    # A rank 0 that dies with its store within the first beat has told nobody its host.
    return re.search(rf"\brank {rank}( \(host [^)]*\))? is (gone|lost)\b", error)


def await_file(path, timeout=60):
    end = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name} after {timeout} s"
        time.sleep(0.02)


# In a step once rank 0, which holds the store, and once another; in a save, where they do different things, both.
@pytest.mark.parametrize("rank,what", [(0, "call=forward n=135 signal=9"), (2, "call=backward n=300 signal=9"),
                                       (0, "call=file path=/snapshots/ n=4 signal=9"),
                                       (2, "call=file path=/snapshots/ n=4 signal=9")])
def test_a_killed_rank_is_named_and_nothing_is_lost(satune, model, shim, undisturbed, tmp_path, rank, what):
    output, log = tmp_path / "run", tmp_path / "struck"
    start = time.monotonic()
    ranks = Ranks(satune, settings(model, output, **CHANGES), COUNT, tmp_path / "logs",
                  environment={rank: fault(shim, what, log)})
    codes = ranks.wait(60)
    assert log.exists(), f"the fault never struck: {ranks.log(rank)}"
    assert codes[rank] == -signal.SIGKILL
    for survivor in set(range(COUNT)) - {rank}:
        assert codes[survivor] == 3, ranks.log(survivor)
        assert names_as_lost(ranks.error(survivor), rank), ranks.log(survivor)
    assert time.monotonic() - start < 40
    goes_on(satune, model, output, undisturbed, tmp_path / "logs")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_others_wait_for_it(satune, model, undisturbed, tmp_path, rank):
    """Stopped first, so that the others are inside a collective when it dies."""
    output = tmp_path / "run"
    ranks = Ranks(satune, settings(model, output, **CHANGES), COUNT, tmp_path / "logs")
    await_rows(output, 3)
    ranks.send(signal.SIGSTOP, rank)
    time.sleep(1)
    ranks.send(signal.SIGKILL, rank)
    codes = ranks.wait(60)
    for survivor in set(range(COUNT)) - {rank}:
        assert codes[survivor] == 3, ranks.log(survivor)
        assert names_as_lost(ranks.error(survivor), rank), ranks.log(survivor)
    goes_on(satune, model, output, undisturbed, tmp_path / "logs")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hung_rank_is_named_within_the_timeout(satune, model, undisturbed, tmp_path, rank):
    output = tmp_path / "run"
    ranks = Ranks(satune, settings(model, output, heartbeat_timeout=3, **CHANGES), COUNT, tmp_path / "logs")
    await_rows(output, 3)
    ranks.send(signal.SIGSTOP, rank)
    try:
        for survivor in set(range(COUNT)) - {rank}:
            assert ranks.processes[survivor].wait(40) == 3, ranks.log(survivor)
            assert names_as_lost(ranks.error(survivor), rank), ranks.log(survivor)
    finally:
        ranks.end()
    goes_on(satune, model, output, undisturbed, tmp_path / "logs")


@pytest.mark.parametrize("rank,what", [(2, "call=backward n=300 signal=15"), (0, "call=forward n=2 signal=15"),
                                       (0, "call=file path=/snapshots/ n=4 signal=15"),
                                       (2, "call=file path=/snapshots/ n=4 signal=15")])
def test_sigterm_on_one_rank_stops_all_at_one_place(satune, model, shim, undisturbed, tmp_path, rank, what):
    output, log = tmp_path / "run", tmp_path / "struck"
    ranks = Ranks(satune, settings(model, output, **CHANGES), COUNT, tmp_path / "logs",
                  environment={rank: fault(shim, what, log)})
    codes = ranks.wait(60)
    assert log.exists()
    assert codes == [4] * COUNT, [ranks.log(r) for r in range(COUNT)]
    assert f"SIGTERM on rank {rank}" in ranks.log(0)
    newest = output / "snapshots" / snapshots(output)[-1]
    # A stop in the evaluation after a step finds its row unwritten: the snapshot holds it.
    unlogged = json.loads((newest / "state.json").read_text())["progress"].get("unlogged") is not None
    assert newest.name == f"step-{len(rows(output)) + unlogged:08}", "the last finished step is saved"
    goes_on(satune, model, output, undisturbed, tmp_path / "logs")


def test_sigterm_on_one_rank_in_the_last_save(satune, model, shim, tmp_path):
    """After it there is no step at which ranks could agree: all leave before the export, or none."""
    output = tmp_path / "run"
    config = settings(model, output, **CHANGES | {"max_steps": 2, "save_steps": 0, "eval_steps": 0, "export_at_end": True})
    ranks = Ranks(satune, config, COUNT, tmp_path / "logs",
                  environment={1: fault(shim, "call=file path=/snapshots/ n=4 signal=15", tmp_path / "struck")})
    assert ranks.wait(60) == [4] * COUNT, [ranks.log(r) for r in range(COUNT)]
    assert (tmp_path / "struck").exists()
    assert snapshots(output) == ["step-00000002"] and not (output / "export").exists()
    run(satune, config, COUNT, tmp_path / "logs")
    assert (output / "export" / "config.json").exists()


def stop_one(satune, shim, config, folder, call, asked):
    """SIGTERM for rank `asked` while rank 0 hangs in a system call and the others wait for it: nobody comes by a
    checkpoint, and all end. What rank 0 has said."""
    ranks = Ranks(satune, config, COUNT, folder / "logs",
                  environment={0: fault(shim, f"call=file {call} hangs=1", folder / "struck")})
    await_file(folder / "struck")
    ranks.send(signal.SIGTERM, asked)
    assert ranks.wait(30) == [4] * COUNT, [ranks.log(r) for r in range(COUNT)]
    assert all("error" not in ranks.log(r) for r in range(1, COUNT)), [ranks.log(r) for r in range(COUNT)]
    return ranks.log(0)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_of_one_rank_while_another_prepares_ends_all(satune, model, shim, tmp_path, asked):
    config = settings(model, tmp_path / "run", token_cache_dir=str(tmp_path / "cache"))
    said = stop_one(satune, shim, config, tmp_path, "path=/cache/ n=1", asked)
    assert "stopped by a signal: no step was done" in said


@pytest.mark.parametrize("asked", [0, 2])
def test_a_stop_of_one_rank_during_the_export_ends_all(satune, model, shim, tmp_path, asked):
    output = tmp_path / "run"
    config = settings(model, output, max_steps=2, export_at_end=True)
    said = stop_one(satune, shim, config, tmp_path, "path=export-new n=4", asked)
    assert "stopped by a signal: all steps are done; the same command completes the run" in said
    run(satune, config, COUNT, tmp_path / "again")
    assert (output / "export" / "config.json").exists() and len(rows(output)) == 2
    assert not [path.name for path in output.iterdir() if ".tmp-" in path.name]


def test_a_stop_right_after_a_save_of_the_model_alone(satune, model, shim, tmp_path):
    """The same step is saved again, this time with what a resume needs."""
    output, changes = tmp_path / "run", CHANGES | {"eval_steps": 0, "save_steps": 1, "save_only_model": True}
    ranks = Ranks(satune, settings(model, output, **changes), COUNT, tmp_path / "logs",
                  environment={1: fault(shim, "call=forward n=105 signal=15", tmp_path / "struck")})
    assert ranks.wait(60) == [4] * COUNT, [ranks.log(r) for r in range(COUNT)]
    assert snapshots(output)[-1] == f"step-{len(rows(output)):08}"
    run(satune, settings(model, output, **changes), COUNT, tmp_path / "logs")
    assert len(rows(output)) == 8


def test_a_resumed_run_lets_go_of_the_snapshot_it_came_from(satune, model, tmp_path):
    """Files that are mapped keep their blocks when they are removed: the disk would hold one snapshot more."""
    output = tmp_path / "run"
    run(satune, settings(model, output, max_steps=2), 1, tmp_path / "logs")
    ranks = Ranks(satune, settings(model, output, max_steps=400, save_steps=400), 1, tmp_path / "logs",
                  ["--allow-changes"])
    await_rows(output, 4)
    maps = pathlib.Path(f"/proc/{ranks.processes[0].pid}/maps").read_text()
    ranks.end()
    assert "/snapshots/" not in maps


def test_sigterm_during_an_evaluation(satune, model, shim, tmp_path):
    """The evaluation after step 2 is dropped; the resumed run does it first and logs the step once."""
    held_out = tmp_path / "heldout.json"
    held_out.write_text(json.dumps(json.loads((model / "train.json").read_text()) * 2))  # many forwards of evaluation
    changes = CHANGES | {"eval_steps": 2, "max_steps": 3, "val_size": 0, "eval_file": str(held_out)}
    whole, output = tmp_path / "whole", tmp_path / "run"
    run(satune, settings(model, whole, **changes), COUNT, tmp_path / "logs")
    # 4 layers x 4 micro-batches x 3 (one when the backward computes a layer again) x 2 steps, then the evaluation's.
    ranks = Ranks(satune, settings(model, output, **changes), COUNT, tmp_path / "logs",
                  environment={1: fault(shim, "call=forward n=105 signal=15", tmp_path / "struck")})
    assert ranks.wait(60) == [4] * COUNT
    assert len(rows(output)) == 1 and snapshots(output)[-1] == "step-00000002"
    run(satune, settings(model, output, **changes), COUNT, tmp_path / "logs")
    assert trajectory(output) == trajectory(whole)
    assert same_state(state(output, 3), state(whole, 3))


def test_survivors_do_not_save_when_asked_to_stop_after_a_death(satune, model, tmp_path):
    """What torchrun does: a rank dies, and the others get SIGTERM."""
    output = tmp_path / "run"
    files = [tmp_path / f"error-{rank}.json" for rank in range(COUNT)]
    ranks = Ranks(satune, settings(model, output, **CHANGES), COUNT, tmp_path / "logs",
                  environment={rank: {"TORCHELASTIC_ERROR_FILE": str(file)} for rank, file in enumerate(files)})
    await_rows(output, 3)
    before = snapshots(output)
    ranks.send(signal.SIGSTOP, 1)  # so that the others cannot finish the step
    ranks.send(signal.SIGKILL, 1)
    start = time.monotonic()
    for rank in (0, 2):
        ranks.send(signal.SIGTERM, rank)
    codes = ranks.wait(40)
    assert time.monotonic() - start < 20, "torchrun kills after 30 s"
    assert codes[1] == -signal.SIGKILL and set(codes[::2]) <= {3, 4}, codes
    for file in files[::2]:  # which is where launch/train.sh looks for the code of the failure
        assert json.loads(file.read_text())["message"]["errorCode"] == 3
    assert set(snapshots(output)) - set(before) <= {"step-00000004"}, "nothing was saved after the death"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_at_every_write_of_a_save(satune, model, shim, tmp_path, rank):
    """One call after another fails, until a run goes through untouched."""
    # One save, and of one tensor alone: a call for each of its three parts on each rank, and those around them.
    config = {"max_steps": 1, "warmup_steps": 0, "save_steps": 0, "gradient_accumulation_steps": 1, "zero_stage": 1,
              "unfrozen_parameters": ["lm_head"]}
    failures = 0
    for n in range(1, 60):
        output, log = tmp_path / f"run-{n}", tmp_path / f"struck-{n}"
        ranks = Ranks(satune, settings(model, output, **config), 2, tmp_path / "logs",
                      environment={rank: fault(shim, f"call=file path=/snapshots/ n={n} errno={errno.EIO}", log)})
        codes = ranks.wait(60)
        if not log.exists():
            assert codes == [0, 0]
            break
        failures += 1
        for name in snapshots(output):
            manifest = json.loads((output / "snapshots" / name / "MANIFEST.json").read_text())
            for file in manifest["files"]:
                assert (output / "snapshots" / name / file["name"]).stat().st_size == file["size"]
        if codes != [0, 0]:
            assert codes == [3, 3], [ranks.log(r) for r in range(2)]
            assert "Input/output error" in ranks.error(rank), ranks.log(rank)
            assert f"rank {rank} " in ranks.error(1 - rank), ranks.log(1 - rank)
        shutil.rmtree(output)
    else:
        pytest.fail("a save of 60 calls or more")
    assert failures >= 5


@pytest.mark.parametrize("rank, in_background", [(0, False), (1, True)])
def test_a_write_that_never_returns_ends_all_ranks(satune, model, shim, tmp_path, rank, in_background):
    """A dead mount: the rank lives and its heart beats, and nobody but it could tell what it waits for."""
    output, log = tmp_path / "run", tmp_path / "struck"
    config = settings(model, output, ddp_timeout=3, async_save=in_background, zero_stage=3)
    ranks = Ranks(satune, config, 2, tmp_path / "logs",
                  environment={rank: fault(shim, "call=file path=step-00000004 n=2 hangs=1", log)})
    assert ranks.wait(60) == [3, 3]
    assert log.exists()
    for line in (ranks.error(0), ranks.error(1)):
        assert f"rank {rank} " in line and " waits for its disk: 3" in line and "step-00000004" in line, line
    assert snapshots(output) == ["step-00000002"]


def test_an_export_that_never_returns_ends_all_ranks(satune, model, shim, tmp_path):
    """The others wait for rank 0 without a collective, as long as an export takes."""
    output, log = tmp_path / "run", tmp_path / "struck"
    config = settings(model, output, ddp_timeout=3, max_steps=2, export_at_end=True)
    ranks = Ranks(satune, config, 2, tmp_path / "logs",
                  environment={0: fault(shim, "call=file path=export-new n=4 hangs=1", log)})
    assert ranks.wait(60) == [3, 3]
    assert log.exists()
    for line in (ranks.error(0), ranks.error(1)):
        assert "rank 0 " in line and " waits for its disk: 3" in line and "export-new" in line, line
    assert snapshots(output) == ["step-00000002"] and not (output / "export").exists()


def test_a_full_disk_keeps_the_snapshot_before(satune, model, tmp_path):
    """A small tmpfs in a namespace of its own; skipped where that is not allowed."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0:
        pytest.skip("no right to mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for the check before step 0, which a file of somebody else then takes away.
    config = settings(model, tmp_path / "run", output_dir=str(disk / "run"), save_total_limit=2,
                      **CHANGES | {"gradient_accumulation_steps": 6})
    script = tmp_path / "full.sh"
    script.write_text(f"""set -e
mount -t tmpfs -o size=24m none {disk}
"{sys.executable}" - <<'PY'
import pathlib, sys, subprocess, time
sys.path[:0] = {sys.path!r}
from ranks import Ranks, await_rows, rows, snapshots
output = pathlib.Path({str(disk / "run")!r})
ranks = Ranks({satune!r}, {str(config)!r}, 2, {str(tmp_path / "logs")!r})
await_rows(output, 3)
try:
    with open({str(disk / "hog")!r}, "wb") as hog:
        while True: hog.write(bytes(65536)); hog.flush()
except OSError: pass
codes = ranks.wait(60)
assert codes == [3, 3], (codes, ranks.log(0), ranks.log(1))
errors = ranks.error(0) + ranks.error(1)
assert "No space left on device" in errors, errors
left = snapshots(output)
assert left, "the snapshot before is gone"
pathlib.Path({str(disk / "hog")!r}).unlink()
again = Ranks({satune!r}, {str(config)!r}, 2, {str(tmp_path / "logs")!r})
assert again.wait(60) == [0, 0], again.log(0)
assert [row["step"] for row in rows(output)] == list(range(1, 9))
PY
""")
    done = subprocess.run(["unshare", "-m", "bash", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_snapshot_that_the_disk_cannot_read_is_passed_over(satune, model, shim, undisturbed, tmp_path):
    output = tmp_path / "run"
    run(satune, settings(model, output, **CHANGES | {"max_steps": 4}), COUNT, tmp_path / "logs")
    assert snapshots(output) == ["step-00000002", "step-00000004"]
    ranks = run(satune, settings(model, output, **CHANGES), COUNT, tmp_path / "logs", ["--allow-changes"],
                environment={0: fault(shim, "call=read path=/step-00000004/rank- n=1 errno=5", tmp_path / "struck")})
    assert (tmp_path / "struck").exists()
    assert "step-00000004 is skipped: " in ranks.log(0) and "cannot be read: Input/output error" in ranks.log(0)
    assert "continuing after step 2 of 8" in ranks.log(0)
    assert same_state(state(output, 8), state(undisturbed, 8))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest"])
def test_a_damaged_snapshot_is_passed_over(satune, model, undisturbed, tmp_path, damage):
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    newest = output / "snapshots" / "step-00000008"
    file = newest / "rank-00001.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 2)
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(content)
    else:
        (newest / "MANIFEST.json").unlink()
    ranks = run(satune, settings(model, output, **CHANGES), COUNT, tmp_path / "logs")
    assert "step-00000008 is skipped" in ranks.log(0) and "continuing after step 6" in ranks.log(0)
    assert trajectory(output) == trajectory(undisturbed)
    assert same_state(state(output, 8), state(undisturbed, 8))


def test_our_launcher_brings_a_run_back(satune, model, shim, undisturbed, tmp_path):
    """A rank is killed in its first attempt; --max-restarts starts all again and nobody has to do anything."""
    output, log = tmp_path / "run", tmp_path / "struck"
    environment = ENVIRONMENT | fault(shim, "call=backward n=300 signal=9 rank=1 attempt=0", log)
    done = subprocess.run([satune, "train", settings(model, output, **CHANGES), "--nproc-per-node", str(COUNT),
                           "--max-restarts", "2"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert log.read_text().count("backward") == 1
    assert "restart 1 of 2" in done.stderr and "rank 1" in done.stderr, done.stderr
    assert trajectory(output) == trajectory(undisturbed)
    assert same_state(state(output, 8), state(undisturbed, 8))


def test_torchrun_brings_a_run_back_and_names_the_cause(satune, model, shim, undisturbed, tmp_path):
    torchrun = pathlib.Path(sys.executable).parent / "torchrun"
    if not torchrun.exists():
        pytest.skip(f"no torchrun at {torchrun}")
    output, log = tmp_path / "run", tmp_path / "struck"
    command = [torchrun, "--standalone", "--no-python", f"--nproc-per-node={COUNT}", "--max-restarts=2", satune, "train",
               settings(model, output, **CHANGES)]
    environment = ENVIRONMENT | fault(shim, "call=backward n=300 signal=9 rank=1 attempt=0", log)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert log.read_text().count("backward") == 1
    assert trajectory(output) == trajectory(undisturbed)

    # A mistake of the user's: the summary at the end carries the message, not only an exit code.
    bad = settings(model, tmp_path / "bad", learning_rate=-1, **CHANGES)
    command[-1], command[4] = bad, "--max-restarts=0"
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "learning_rate" in done.stderr and "Root Cause" in done.stderr, done.stderr
