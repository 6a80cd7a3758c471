"""`satune plan` against real ranks: bytes counted by their process groups, and the memory of each."""

import json
import subprocess

import pytest
from memory import grown_peaks
from ranks import ENVIRONMENT, Ranks, rows, run, settings

STEPS, MICRO_STEPS = 2, 3


def planned(satune, config, count, *arguments):
    done = subprocess.run([satune, "plan", config, "--world-size", str(count), "--device", "cpu", "--json",
                           *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_traffic(satune, config, count, stage, logs):
    run(satune, config, count, logs)
    sent = planned(satune, config, count)["stages"][stage]["sent_bytes"]
    gathered = (sent["gathered_first_micro_step"] + (MICRO_STEPS - 1) * sent["gathered_later_micro_step"]
                + sent["gathered_at_update"])
    between = sent["between_replicas"] // 2  # a reduce-scatter and an all-gather
    found = rows(json.loads(config.read_text())["output_dir"])
    assert len(found) == STEPS
    for row in found:
        assert row["sent_reduced_bytes"] == MICRO_STEPS * sent["reduced_per_micro_step"] + between
        assert row["sent_gathered_bytes"] == gathered + between
        assert row["sent_other_bytes"] == sent["exchanged_per_step"]
        assert sum(row[f"sent_{kind}_bytes"] for kind in ("reduced", "gathered", "other")) == sent["per_step"]
    return sent


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bytes_of_a_step_are_those_planned(satune, model, tmp_path, count, stage):
    precision = "bf16" if count == 2 else "fp32"
    config = settings(model, tmp_path / "run", zero_stage=stage, max_steps=STEPS, precision=precision,
                      gradient_accumulation_steps=MICRO_STEPS, save_steps=0)
    sent = check_traffic(satune, config, count, stage, tmp_path / "logs")
    assert sent["reduced_per_micro_step"] > 0
    assert (sent["gathered_at_update"] > 0) == (stage < 3) and (sent["gathered_first_micro_step"] > 0) == (stage == 3)


@pytest.mark.parametrize("stage", [1, 3])
def test_bytes_with_frozen_tensors_and_a_tied_head(satune, model, tmp_path, stage):
    architecture = json.loads((model / "arch.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "arch.json").write_text(json.dumps(architecture))
    subprocess.run([satune, "init", tmp_path / "arch.json", tmp_path / "model", "--tokenizer", model / "model"],
                   check=True, capture_output=True, env=ENVIRONMENT)
    common = {"zero_stage": stage, "max_steps": STEPS, "gradient_accumulation_steps": MICRO_STEPS, "save_steps": 0}
    tied = settings(model, tmp_path / "tied", model_name_or_path=str(tmp_path / "model"), **common)
    check_traffic(satune, tied, 2, stage, tmp_path / "logs-tied")
    frozen = settings(model, tmp_path / "frozen", unfrozen_parameters=["model.layers.[23]", "lm_head"], **common)
    check_traffic(satune, frozen, 2, stage, tmp_path / "logs-frozen")


def test_bytes_of_shard_groups(satune, model, tmp_path):
    config = settings(model, tmp_path / "run", zero_stage=3, shard_group_size=2, max_steps=STEPS,
                      gradient_accumulation_steps=MICRO_STEPS, save_steps=0)
    assert check_traffic(satune, config, 4, 3, tmp_path / "logs")["between_replicas"] > 0


# 68M parameters: two ranks of it hold more than 1 GiB of state together.
LARGE = {"vocab_size": 40960, "hidden_size": 640, "intermediate_size": 1792, "num_attention_heads": 10,
         "num_key_value_heads": 5, "max_position_embeddings": 2048}


@pytest.fixture(scope="module")
def large(satune, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    (folder / "arch.json").write_text(json.dumps(json.loads((model / "arch.json").read_text()) | LARGE))
    subprocess.run([satune, "init", folder / "arch.json", folder / "model", "--tokenizer", model / "model"], check=True,
                   capture_output=True, env=ENVIRONMENT)
    with open(folder / "train.jsonl", "w") as file:
        for n in range(400):
            file.write(json.dumps({"text": " ".join(f"river {(7 * n + i) % 50} stone" for i in range(10))}) + "\n")
    return folder


@pytest.mark.xdist_group("large-memory")
@pytest.mark.parametrize("stage,precision,tokens", [(0, "fp32", 288), (2, "fp32", 192), (3, "bf16", 288)])
def test_memory_of_a_rank_within_five_percent(satune, large, tmp_path, stage, precision, tokens):
    """Anonymous memory of the ranks together above its value before loading, sampled from outside."""
    output = tmp_path / "run"
    config = settings(large, output, train_file=str(large / "train.jsonl"), token_cache_dir="", sharing={"layers": ""},
                      zero_stage=stage, precision=precision, max_steps=2, max_length=tokens, packing=True, val_size=0,
                      gradient_accumulation_steps=2, gradient_checkpointing=True, save_steps=0)
    ranks = Ranks(satune, config, 2, tmp_path / "logs")
    try:
        peaks = grown_peaks(ranks.processes, output)
        assert [process.returncode for process in ranks.processes] == [0, 0], ranks.log(0) + ranks.log(1)
    finally:
        ranks.end()
    expected = planned(satune, config, 2)["stages"][stage]
    for rank, measured in enumerate(peaks):
        error = expected["total_bytes"] / measured - 1
        print(f"stage {stage} {precision} rank {rank}: planned {expected['total_bytes'] / 2**20:.1f} MiB, "
              f"measured {measured / 2**20:.1f}, {error:+.1%}")
        assert abs(error) < 0.05, expected["memory_bytes"]
