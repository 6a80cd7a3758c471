"""async_save: a snapshot written while training goes on, by a rank whose write fails or that dies in it."""

import errno
import re
import signal

import pytest
from nodes import with_memory
from ranks import Ranks, await_rows, fault, rows, run, same_state, settings, snapshots, state, trajectory

COUNT, STEPS, FIRST, SECOND = 3, 36, 12, 24
# Nothing but the failure itself can end the run after the second save: no later save waits for it.
CHANGES = {"async_save": True, "zero_stage": 3, "gradient_accumulation_steps": 1, "max_steps": STEPS, "save_steps": FIRST}
# In the middle of the second save, which waits there until there have been more steps.
STRIKES = f"call=file path=step-{SECOND:08} n=3"


@pytest.fixture(scope="module")
def undisturbed(satune, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(satune, settings(model, output, **CHANGES), COUNT, output.parent / "logs")
    return output


def strike(satune, shim, config, output, rank, what, folder):
    """The ranks when all have ended, their exit codes, and the steps that were done when the fault struck."""
    log, go = folder / "struck", folder / "go"
    text = f"{STRIKES} await={go} {what}"
    ranks = Ranks(satune, config, COUNT, folder / "logs", environment={rank: fault(shim, text, log)})
    try:
        await_rows(output, SECOND + 2)
        assert not log.exists()
        done = len(rows(output))
        go.touch()
    finally:
        codes = ranks.wait(60)
    assert log.exists(), f"the fault never struck: {ranks.log(rank)}"
    return ranks, codes, done


def goes_on(satune, config, output, undisturbed, logs):
    """From the snapshot before, to the end of a run that nothing has disturbed."""
    assert snapshots(output) == [f"step-{FIRST:08}"]
    ranks = run(satune, config, COUNT, logs)
    assert f"continuing after step {FIRST} of {STEPS}" in ranks.log(0)
    assert trajectory(output) == trajectory(undisturbed)
    assert same_state(state(output, STEPS), state(undisturbed, STEPS))
    assert snapshots(output) == snapshots(undisturbed)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failed_save_ends_all_ranks_at_the_next_step(satune, model, shim, undisturbed, tmp_path, rank):
    output = tmp_path / "run"
    config = settings(model, output, **CHANGES)
    ranks, codes, done = strike(satune, shim, config, output, rank, f"errno={errno.ENOSPC}", tmp_path)
    assert codes == [3] * COUNT
    for other in range(COUNT):
        line = ranks.error(other)
        assert "No space left on device" in line and f"step-{SECOND:08}" in line, line
        assert other == rank or f"rank {rank} " in line, line
    assert len(rows(output)) <= done + 5 < STEPS
    goes_on(satune, config, output, undisturbed, tmp_path / "logs")


def test_copies_that_do_not_fit_are_refused(satune, model, tmp_path):
    """In a control group of little memory. Ranks that hold one model together copy it once; of two groups that hold one
    each only the first saves."""
    place = with_memory(500_000)
    try:
        wrapper = tmp_path / "inside.sh"
        wrapper.write_text(f"""#!/bin/sh\nexec {' '.join(place.enter)} {satune} "$@"\n""")
        wrapper.chmod(0o755)
        expected = set()
        for group in (4, 2):
            config = settings(model, tmp_path / f"run-{group}", **CHANGES | {"gradient_accumulation_steps": 3},
                              shard_group_size=group)
            ranks = Ranks(str(wrapper), config, 4, tmp_path / "logs")
            assert ranks.wait(60) == [3] * 4, ranks.log(0)
            found = re.search(r"async_save: found .* of memory available, expected (.*) for copies of the state of the "
                              r"4 processes on this machine", ranks.error(0))
            assert found, ranks.error(0)
            expected.add(found[1])
            assert not rows(tmp_path / f"run-{group}")
        assert len(expected) == 1, expected
    finally:
        place.end()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_killed_during_a_save_loses_nothing_older(satune, model, shim, undisturbed, tmp_path, rank):
    output = tmp_path / "run"
    config = settings(model, output, **CHANGES)
    ranks, codes, done = strike(satune, shim, config, output, rank, "signal=9", tmp_path)
    assert codes[rank] == -signal.SIGKILL
    for survivor in set(range(COUNT)) - {rank}:
        assert codes[survivor] == 3 and f"rank {rank} " in ranks.error(survivor), ranks.log(survivor)
    goes_on(satune, config, output, undisturbed, tmp_path / "logs")
