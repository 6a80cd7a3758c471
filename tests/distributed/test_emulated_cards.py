"""The CUDA path of satune on cards that are emulated (tests/emulated_card/card.h): all of its host code, LibTorch's and
c10d's, where no card is. What kernels round as on a card is not seen here, nor any speed."""

import itertools
import json
import signal
import time

import pytest
from programs import built, call
from ranks import ENVIRONMENT, Ranks, await_rows, rows, run, same_state, settings, snapshots, state, trajectory

ON_CARD = {"device": "cuda", "max_steps": 4, "gradient_accumulation_steps": 2, "packing": True, "save_steps": 0}


@pytest.fixture(scope="module")
def on_card():
    return built("satune_on_emulated_card")


def environment(cards, **more):
    return {rank: {"SATUNE_EMULATED_CARDS": str(cards)} | more for rank in range(cards)}


def train(program, model, output, cards=1, env=None, **changes):
    run(program, settings(model, output, **(ON_CARD | changes)), cards, output.parent / f"{output.name}-logs",
        environment=environment(cards, **(env or {})))
    return trajectory(output)


def apart(a, b):
    """The largest relative difference of two runs' losses and gradient norms."""
    assert len(a) == len(b) > 0
    return max(abs(x[key] / y[key] - 1) for x, y in zip(a, b) for key in ("loss", "grad_norm"))


# Settings that take ways of their own on a card, and how near the CPU's run is: to fp32's order of sums, or to what
# 16 or 8 bits round differently. gradient norms of so small a model vary most.
MODES = [
    ("fp32", {"precision": "fp32"}, 1e-4),
    ("bf16", {"precision": "bf16"}, 0.02),
    ("fp16", {"precision": "fp16"}, 0.01),
    ("fp8", {"precision": "bf16", "fp8": True}, 0.1),
    ("rows", {"precision": "bf16", "packing": False, "gradient_checkpointing": "selective"}, 0.02),
    ("cudnn", {"precision": "bf16", "attn_implementation": "cudnn"}, 0.02),
    ("activations", {"precision": "bf16", "gradient_checkpointing": False, "activation_offloading": True}, 0.02),
    ("optimizer", {"precision": "bf16", "optimizer_offload": "cpu"}, 0.02),
    ("small", {"precision": "bf16", "master_weights": "none", "optimizer_moments": "8bit"}, 0.02),
    ("split", {"precision": "bf16", "master_weights": "split", "optimizer_moments": "bf16"}, 0.02),
]


@pytest.mark.parametrize("name,changes,tolerance", MODES, ids=[mode[0] for mode in MODES])
def test_a_card_follows_the_cpu_and_waits_where_it_must(satune, on_card, model, tmp_path, name, changes, tolerance):
    late = train(on_card, model, tmp_path / "late", **changes)
    for order in ("early", "ahead"):
        other = train(on_card, model, tmp_path / order, env={"SATUNE_EMULATED_ORDER": order}, **changes)
        assert late == other, "numbers depend on when the card does its work"
    cpu = train(satune, model, tmp_path / "cpu", **(changes | {"device": "cpu", "attn_implementation": "auto"}))
    assert apart(late, cpu) < tolerance


@pytest.mark.parametrize("kernel,precision", [("auto", "bf16"), ("flash", "bf16"), ("auto", "fp32")])
def test_a_run_that_need_not_be_deterministic_follows_the_cpu(satune, on_card, model, tmp_path, kernel, precision):
    """The emulated card adds the gradients of queries in another order each time, as cards do, if it may."""
    changes = {"precision": precision, "deterministic": False, "attn_implementation": kernel}
    once, again = (train(on_card, model, tmp_path / str(i), **changes) for i in range(2))
    assert precision == "bf16" or once != again, "where 16 bits do not hide it, the order shows"
    cpu = train(satune, model, tmp_path / "cpu", **(changes | {"device": "cpu", "attn_implementation": "auto"}))
    assert apart(once, cpu) < 0.02 and apart(again, cpu) < 0.02


def test_activations_on_the_host_change_no_bit(on_card, model, tmp_path):
    trajectories = [train(on_card, model, tmp_path / str(offloaded), precision="bf16", gradient_checkpointing=policy,
                  activation_offloading=offloaded)
            for offloaded, policy in itertools.product((False, True), (True, "selective", False))]
    assert all(one == trajectories[0] for one in trajectories)


def test_a_profile_shows_their_copies(on_card, model, tmp_path):
    """Of 4 layers all but the last leave, and come back, in each of two micro-steps."""
    config = settings(model, tmp_path / "run", **(ON_CARD | {"precision": "bf16", "activation_offloading": True}))
    run(on_card, config, 1, tmp_path / "logs", arguments=("--profile", 1), environment=environment(1))
    events = json.loads((tmp_path / "run" / "profile" / "rank0.json").read_text())["traceEvents"]
    named = [event for event in events if event.get("name", "").startswith("activations of layer")]
    assert all(event["cat"] == "communication" for event in named)
    for layer in range(3):
        for way in ("to the host", "back"):
            assert sum(event["name"] == f"activations of layer {layer} {way}" for event in named) == 2, (layer, way)
    assert not any("layer 3" in event["name"] for event in named)


def test_the_optimizer_on_the_host_changes_no_bit(on_card, model, tmp_path):
    for small in ({}, {"master_weights": "split", "optimizer_moments": "8bit"}):
        changes = {"precision": "bf16", "gradient_accumulation_steps": 1, "zero_stage": 2, "save_steps": 4} | small
        name = f"small{len(small)}"
        card = train(on_card, model, tmp_path / f"{name}-card", 2, **changes)
        assert train(on_card, model, tmp_path / f"{name}-host", 2, optimizer_offload="cpu", **changes) == card
        assert same_state(state(tmp_path / f"{name}-host", 4), state(tmp_path / f"{name}-card", 4))


def test_stages_on_two_cards_have_the_same_bits(on_card, model, tmp_path):
    changes = {"precision": "bf16", "gradient_accumulation_steps": 1, "save_steps": 4}
    whole = train(on_card, model, tmp_path / "stage0", 2, zero_stage=0, **changes)
    for stage in (1, 2, 3):
        assert train(on_card, model, tmp_path / f"stage{stage}", 2, zero_stage=stage, **changes) == whole
        assert same_state(state(tmp_path / f"stage{stage}", 4), state(tmp_path / "stage0", 4))
    for order in ("early", "ahead"):
        assert train(on_card, model, tmp_path / order, 2, env={"SATUNE_EMULATED_ORDER": order}, zero_stage=3,
                     **changes) == whole


def test_more_cards_train_as_one(on_card, model, tmp_path):
    """Equal global batches in fp32; four cards once as two replicas of two."""
    alone = train(on_card, model, tmp_path / "one", gradient_accumulation_steps=4)
    two = train(on_card, model, tmp_path / "two", 2, gradient_accumulation_steps=2, zero_stage=2)
    four = train(on_card, model, tmp_path / "four", 4, gradient_accumulation_steps=1, zero_stage=3, shard_group_size=2)
    assert apart(two, alone) < 1e-6
    assert apart(four, alone) < 1e-6


def test_a_run_goes_on_with_fewer_cards_and_on_none(satune, on_card, model, tmp_path):
    output, changes = tmp_path / "run", {"save_steps": 2, "zero_stage": 3}
    train(on_card, model, output, 2, max_steps=2, gradient_accumulation_steps=2, **changes)
    before = state(output, 2)
    train(on_card, model, output, 1, max_steps=4, gradient_accumulation_steps=4, allow_changes=True, **changes)
    assert same_state(state(output, 2), before)
    assert snapshots(output) == ["step-00000002", "step-00000004"]
    whole = train(satune, model, output, 1, max_steps=6, gradient_accumulation_steps=4, allow_changes=True, device="cpu",
                 **changes)
    assert [row["step"] for row in whole] == [1, 2, 3, 4, 5, 6]


def test_a_card_whose_process_dies_in_a_collective_is_named(on_card, model, tmp_path):
    changes = {"gradient_accumulation_steps": 1, "zero_stage": 3, "max_steps": 30, "save_steps": 5, "precision": "bf16"}
    expected = train(on_card, model, tmp_path / "whole", 2, **changes)
    output = tmp_path / "run"
    config = settings(model, output, **(ON_CARD | changes | {"heartbeat_timeout": 3}))
    ranks = Ranks(on_card, config, 2, tmp_path / "logs", environment=environment(2))
    await_rows(output, 3)
    ranks.send(signal.SIGSTOP, 1)
    time.sleep(1)
    ranks.send(signal.SIGKILL, 1)
    start = time.monotonic()
    assert ranks.processes[0].wait(40) == 3, ranks.log(0)
    assert "rank 1" in ranks.error(0) and ("is gone" in ranks.error(0) or "is lost" in ranks.error(0)), ranks.log(0)
    assert time.monotonic() - start < 20
    ranks.end()
    assert train(on_card, model, output, 2, **changes) == expected


@pytest.mark.parametrize("cards,changes", [(2, {"zero_stage": 0}), (2, {"zero_stage": 3, "async_save": True}),
                                           (4, {"zero_stage": 2, "shard_group_size": 2, "async_save": True})])
def test_a_stop_with_work_in_flight_saves_and_goes_on(on_card, model, tmp_path, cards, changes):
    changes |= {"gradient_accumulation_steps": 4 // cards, "max_steps": 20, "save_steps": 5, "precision": "bf16"}
    whole = train(on_card, model, tmp_path / "whole", cards, **changes)
    output = tmp_path / "run"
    ranks = Ranks(on_card, settings(model, output, **(ON_CARD | changes)), cards, tmp_path / "logs",
                  environment=environment(cards))
    await_rows(output, 3)
    ranks.send(signal.SIGTERM, 1)
    assert ranks.wait(60) == [4] * cards, [ranks.log(rank) for rank in range(cards)]
    assert snapshots(output)[-1] == f"step-{len(rows(output)):08}"
    assert train(on_card, model, output, cards, **changes) == whole


def test_out_of_memory_is_said_before_the_first_step(on_card, model, tmp_path):
    config = settings(model, tmp_path / "run", **ON_CARD)
    ranks = Ranks(on_card, config, 1, tmp_path / "logs", environment={0: {"SATUNE_EMULATED_MEMORY": str(34 << 20)}})
    assert ranks.wait() == [3], ranks.log(0)
    assert "out of memory" in ranks.error(0) and "before training starts" in ranks.error(0)
    assert not rows(tmp_path / "run")


ENV = ENVIRONMENT | {"SATUNE_EMULATED_CARDS": "1"}


def test_commands_take_the_card(on_card, model, tmp_path):
    """bench, diff, generate and eval on the card, against the CPU where that says something."""
    text = [call(on_card, "generate", model / "model", "--prompt", "river stone", "--max-new-tokens", "12", "--precision",
                 "fp32", "--device", device, env=ENV).stdout for device in ("cuda", "cpu")]
    assert text[0] == text[1] != ""
    report = call(on_card, "diff", model / "model", "--device", "cpu", "--with-device", "cuda", "--data",
                  model / "train.json", "--max-records", "2", "--gradients", env=ENV).stdout
    assert "of the backward pass agree" in report
    losses = [json.loads(call(on_card, "eval", model / "model", "--precision", "fp32", "--device", device, "--task",
                              f"response_loss={model / 'train.json'}", "--max-records", "4", "--json",
                              env=ENV).stdout)["tasks"]["response_loss"] for device in ("cuda", "cpu")]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-6)
    call(on_card, "bench", model / "arch.json", "--layers", "2", "--sequence-length", "32", "--steps", "1", "--warm-up",
         "1", "--output", tmp_path / "bench.json", "--sharing", "1-1", "--turns", "1", env=ENV)
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert bench["turns"]
    call(on_card, "bench", model / "arch.json", "--decode", "--prompt-length", "8", "--new-tokens", "2", "--max-batch", "2",
         env=ENV)
