"""Many processes train as one: the same numbers, on any layout, before and after a resume."""

import json
import os
import shutil
import subprocess
import time

import pytest
from nodes import with_memory
from ranks import ENVIRONMENT, Ranks, fault, rows, run, same_state, settings, snapshots, state, trajectory


@pytest.fixture(scope="module")
def one(satune, model, tmp_path_factory):
    """The run of one process that all others are held against."""
    output = tmp_path_factory.mktemp("one") / "run"
    run(satune, settings(model, output), 1, output.parent / "logs")
    return output


def accumulated(count):
    return {"gradient_accumulation_steps": 12 // count}


@pytest.fixture(scope="module")
def trained(satune, model, tmp_path_factory):
    """trained(count, stage): the folder of that run, which is made once; tests only read it."""
    made = {}

    def of(count, stage, **changes):
        key = (count, stage, *changes.items())
        if key not in made:
            output = tmp_path_factory.mktemp("trained") / "run"
            config = settings(model, output, zero_stage=stage, **accumulated(count), **changes)
            run(satune, config, count, output.parent / "logs")
            made[key] = output
        return made[key]

    return of


@pytest.mark.parametrize("count,stage", [(2, 0), (2, 1), (2, 2), (2, 3), (3, 3), (4, 0), (4, 3)])
def test_ranks_train_as_one_process_does(trained, one, count, stage):
    for ours, theirs in zip(rows(trained(count, stage)), rows(one), strict=True):
        assert abs(ours["loss"] - theirs["loss"]) <= 1e-6 * theirs["loss"]
        assert ours["num_tokens"] == theirs["num_tokens"]


def test_twenty_steps_stay_within_a_millionth(satune, model, tmp_path):
    """Equal global batches in fp32 on 1, 2 and 4 processes."""
    losses = {}
    for count in (1, 2, 4):
        config = settings(model, tmp_path / f"run-{count}", max_steps=20, save_steps=0, **accumulated(count))
        run(satune, config, count, tmp_path / "logs")
        losses[count] = [row["loss"] for row in rows(tmp_path / f"run-{count}")]
    for count in (2, 4):
        assert len(losses[count]) == 20
        assert losses[count] == pytest.approx(losses[1], rel=1e-6)


def test_stages_leave_the_same_state(trained):
    first, *others = (trained(2, stage) for stage in range(4))
    for other in others:
        assert trajectory(other) == trajectory(first)
        for step in (4, 8):
            assert same_state(state(other, step), state(first, step))


@pytest.mark.parametrize("precision,stage", [("fp32", 0), ("bf16", 1), ("bf16", 3)])
def test_a_resume_on_the_same_layout_is_bitwise(satune, model, trained, tmp_path, precision, stage):
    steps, changes = (8, {}) if precision == "fp32" else (4, {"precision": precision, "max_steps": 4})  # bf16 is slow here
    whole, parts = trained(2, stage, **changes), tmp_path / "parts"
    shutil.copytree(whole, parts)
    # As if it had been killed half-way: later snapshots and rows are gone or cut.
    for name in snapshots(parts):
        if name > f"step-{steps // 2:08}":
            shutil.rmtree(parts / "snapshots" / name)
    ranks = run(satune, settings(model, parts, zero_stage=stage, **accumulated(2), **changes), 2, tmp_path / "logs")
    assert f"continuing after step {steps // 2} of {steps}" in ranks.log(0)
    assert trajectory(parts) == trajectory(whole) and len(rows(whole)) == steps
    assert same_state(state(parts, steps), state(whole, steps))


def test_layouts_change_between_resumes(satune, model, one, tmp_path):
    """4 -> 2 -> 1 -> 4 ranks and stages 0 <-> 3 take up element for element what the ranks before have left."""
    output = tmp_path / "run"
    for steps, count, stage in ((2, 4, 0), (4, 2, 3), (6, 1, 0), (8, 4, 3)):
        before = state(output, steps - 2) if steps > 2 else None
        config = settings(model, output, zero_stage=stage, max_steps=steps, gradient_accumulation_steps=3, save_steps=2)
        ranks = run(satune, config, count, tmp_path / "logs", ["--allow-changes"])  # of max_steps
        if before is not None:
            assert f"continuing after step {steps - 2}" in ranks.log(0)
            assert same_state(state(output, steps - 2), before)
    assert [row["step"] for row in rows(output)] == list(range(1, 9))
    # Three rows a rank and 4 ranks: the run keeps its 12 rows a step on every layout, and so its trajectory.
    for ours, theirs in zip(rows(output)[:2], rows(one)[:2]):
        assert ours["num_tokens"] == theirs["num_tokens"]
        assert abs(ours["loss"] - theirs["loss"]) <= 1e-6 * theirs["loss"]


def test_another_global_batch_is_refused(satune, model, trained, tmp_path):
    output = shutil.copytree(trained(2, 0), tmp_path / "run")
    config = settings(model, output, zero_stage=0, gradient_accumulation_steps=5)
    ranks = run(satune, config, 2, tmp_path / "logs", codes=[2, 2])
    assert "found 10 rows a step, expected 12" in ranks.error(0)


def test_export_of_sharded_ranks_equals_that_of_one(satune, model, tmp_path):
    exported = []
    for count, stage in ((1, 0), (3, 3)):
        output = tmp_path / f"run-{count}"
        run(satune, settings(model, output, zero_stage=stage, export_at_end=True, max_steps=2,
                             learning_rate=1e-12, **accumulated(count)), count, tmp_path / "logs")
        again = tmp_path / f"again-{count}"
        subprocess.run([satune, "export", output, again], check=True, env=ENVIRONMENT, capture_output=True)
        assert (again / "model.safetensors").read_bytes() == (output / "export" / "model.safetensors").read_bytes()
        exported.append(json.loads((output / "export" / "config.json").read_text()))
    assert exported[0] == exported[1]


def test_shard_groups_and_background_saves(satune, model, one, tmp_path):
    output = tmp_path / "run"
    run(satune, settings(model, output, zero_stage=3, shard_group_size=2, async_save=True, **accumulated(4)), 4,
        tmp_path / "logs")
    for ours, theirs in zip(rows(output), rows(one), strict=True):
        assert abs(ours["loss"] - theirs["loss"]) <= 1e-6 * theirs["loss"]
    assert snapshots(output) == [f"step-{step:08}" for step in (2, 4, 6, 8)]
    world = json.loads((output / "snapshots" / "step-00000008" / "state.json").read_text())["world"]
    assert world == {"size": 4, "zero_stage": 3, "shard_group_size": 2}
    # The same groups go on in silence, others with a word.
    for size, told in ((2, False), (4, True)):
        shutil.rmtree(output / "snapshots" / "step-00000008")
        again = run(satune, settings(model, output, zero_stage=3, shard_group_size=size, **accumulated(4)), 4,
                    tmp_path / "logs")
        line = f"the run had shard_group_size 2, this has {size}: it continues, but not to the last bit"
        assert (line in again.log(0)) == told, again.log(0)
        assert ("not to the last bit" in again.log(0)) == told
    refused = run(satune, settings(model, tmp_path / "odd", shard_group_size=3, **accumulated(4)), 4,
                  tmp_path / "logs", codes=[2] * 4)
    assert "shard_group_size: found 3, expected a divisor of the number of processes, 4" in refused.error(0)


def test_more_ranks_than_rows(satune, model, tmp_path):
    """Two rows a step for four ranks: two of them never have data, and nobody waits for them."""
    output = tmp_path / "run"
    run(satune, settings(model, output, max_steps=2, per_device_train_batch_size=2,
                         gradient_accumulation_steps=1), 1, tmp_path / "logs")
    config = settings(model, output, max_steps=4, per_device_train_batch_size=2,
                      gradient_accumulation_steps=1, zero_stage=3)
    run(satune, config, 4, tmp_path / "logs", ["--allow-changes"])
    assert [row["step"] for row in rows(output)] == [1, 2, 3, 4]


def test_the_stage_goes_by_the_least_memory_of_a_rank(satune, model, tmp_path):
    """Not by rank 0's alone: another may share its card, or its machine, with somebody."""
    config = settings(model, tmp_path / "run", max_steps=1, warmup_steps=0, zero_stage="auto", **accumulated(2))
    ranks = run(satune, config, 2, tmp_path / "logs", ["output_dir=" + str(tmp_path / "wide")])
    assert "zero_stage auto: 0 " in ranks.log(0), ranks.log(0)
    place = with_memory(500_000)
    try:
        wrapper = tmp_path / "narrow.sh"
        wrapper.write_text(f"""#!/bin/sh\n[ $RANK = 0 ] && exec {satune} "$@"\nexec {' '.join(place.enter)} {satune} "$@"\n""")
        wrapper.chmod(0o755)
        ranks = run(str(wrapper), config, 2, tmp_path / "logs")
        assert "zero_stage auto: 3 " in ranks.log(0), ranks.log(0)
    finally:
        place.end()


def test_one_rank_tokenises_and_the_others_read(satune, model, shim, tmp_path):
    """However long it takes: rank 0 comes to its first write after three times ddp_timeout. Another that wrote would
    die."""
    config = settings(model, tmp_path / "run", max_steps=1, warmup_steps=0, token_cache_dir=str(tmp_path / "fresh"),
                      ddp_timeout=2, **accumulated(3))
    go = tmp_path / "go"
    writes = "call=file path=/fresh/ n=1"
    shims = {rank: fault(shim, f"{writes} signal=9" if rank else f"{writes} await={go}", tmp_path / f"wrote-{rank}")
             for rank in range(3)}
    ranks = Ranks(satune, config, 3, tmp_path / "logs", environment=shims)
    time.sleep(6)
    assert not rows(tmp_path / "run")
    go.touch()
    assert ranks.wait(60) == [0, 0, 0], [ranks.log(rank) for rank in range(3)]
    assert [(tmp_path / f"wrote-{rank}").exists() for rank in range(3)] == [True, False, False]
    assert len(rows(tmp_path / "run")) == 1


def test_ranks_must_see_one_folder(satune, model, tmp_path):
    """Two machines with a folder of the same name each: here, two working folders and a relative path."""
    config = settings(model, tmp_path / "run", output_dir="relative", **accumulated(2))
    wrapper = tmp_path / "elsewhere.sh"
    wrapper.write_text(f'#!/bin/sh\nmkdir -p "{tmp_path}/$RANK"\ncd "{tmp_path}/$RANK"\nexec "{satune}" "$@"\n')
    wrapper.chmod(0o755)
    ranks = run(str(wrapper), config, 2, tmp_path / "logs", codes=[3, 3])
    assert "output_dir relative" in ranks.error(1) and "one folder that all ranks share" in ranks.error(1)


@pytest.mark.parametrize("change,difference", [("max_steps=5", "max_steps: found 5, expected 4"),
                                               ("train_file=other.json", "train_file: found "),
                                               ("model_name_or_path=stale", 'model_name_or_path.weights: found "fingerprint ')])
def test_ranks_that_were_told_different_things_stop(satune, model, tmp_path, change, difference):
    (tmp_path / "other.json").write_text(json.dumps(json.loads((model / "train.json").read_text())[1:]))
    shutil.copytree(model / "model", tmp_path / "stale")
    with open(tmp_path / "stale" / "model.safetensors", "r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        last = weights.read(1)[0]
        weights.seek(-1, os.SEEK_END)
        weights.write(bytes([last ^ 1]))
    config = settings(model, tmp_path / "run", max_steps=4, **accumulated(2))
    wrapper = tmp_path / "different.sh"
    wrapper.write_text(f'#!/bin/sh\ncd "{tmp_path}"\n[ $RANK = 1 ] && set -- "$@" "{change}"\nexec "{satune}" "$@"\n')
    wrapper.chmod(0o755)
    ranks = run(str(wrapper), config, 2, tmp_path / "logs", codes=[2, 2])
    for rank in range(2):
        assert "rank 1 is not set up as rank 0 is: " in ranks.error(rank)
        assert difference in ranks.error(rank)


@pytest.mark.parametrize("sizes", [{1: 4}, {0: 3}])
def test_ranks_that_disagree_about_their_number_say_so(satune, model, tmp_path, sizes):
    ranks = Ranks(satune, settings(model, tmp_path / "run"), 2, tmp_path / "logs",
                  environment={rank: {"WORLD_SIZE": str(size)} for rank, size in sizes.items()})
    assert ranks.wait(60) == [2, 2], [ranks.log(rank) for rank in range(2)]
    line = f"WORLD_SIZE: found {sizes.get(1, 2)} on rank 1, expected {sizes.get(0, 2)}, that of rank 0"
    assert line in ranks.error(1) and line in ranks.error(0)


def test_a_master_that_no_name_server_knows_is_said(satune, model, tmp_path):
    config = settings(model, tmp_path / "run", ddp_timeout=12)
    ranks = Ranks(satune, config, 2, tmp_path / "logs", environment={1: {"MASTER_ADDR": "no.such.host.invalid"}})
    assert 0 not in ranks.wait(60)
    assert "no.such.host.invalid" in ranks.log(1) and "a name that does not resolve (MASTER_ADDR)" in ranks.log(1)
    assert "does not resolve" not in ranks.log(0)
