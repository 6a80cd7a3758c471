"""`satune plan`: its memory against what real runs take, and the command as a user meets it.

The measure is anonymous memory (RssAnon of /proc, sampled every few milliseconds) above its value just before
the weights are loaded, on runs of two steps that hold more than 1 GiB of state and save at the end.
"""

import json
import os
import subprocess

import pytest
from memory import grown_peaks
from programs import ROOT, call, refused

TOLERANCE = 0.05
THREADS = 2
# 68M parameters, nearly half of them an embedding, which costs memory and no time.
ARCHITECTURE = {
    "model_type": "llama", "vocab_size": 40960, "hidden_size": 640, "intermediate_size": 1792,
    "num_hidden_layers": 4, "num_attention_heads": 10, "num_key_value_heads": 5, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "dtype": "float32",
}


def plan(program, *arguments):
    return json.loads(call(program, "plan", *arguments, "--json").stdout)


@pytest.fixture(scope="module")
def model(satune, tmp_path_factory):
    """A folder with records, a model of ARCHITECTURE and a config that trains it for two steps."""
    directory = tmp_path_factory.mktemp("plan")
    # Plain text: every token is a target, as the plan has to assume; short documents fill their rows.
    with open(directory / "train.jsonl", "w") as file:
        for n in range(600):
            file.write(json.dumps({"text": " ".join(f"{(7 * n + i) % 50} sheep" for i in range(8 + n % 5))}) + "\n")
    (directory / "tokenizer.json").write_text(json.dumps({**ARCHITECTURE, "hidden_size": 20, "num_hidden_layers": 1}))
    call(satune, "init", directory / "tokenizer.json", directory / "tokenizer", "--train-tokenizer",
         directory / "train.jsonl", "--vocab-size", 280)
    (directory / "arch.json").write_text(json.dumps(ARCHITECTURE))
    call(satune, "init", directory / "arch.json", directory / "model", "--tokenizer", directory / "tokenizer")
    (directory / "config.json").write_text(json.dumps({
        "model_name_or_path": str(directory / "model"), "output_dir": str(directory / "unused"),
        "train_file": str(directory / "train.jsonl"), "token_cache_dir": "", "val_size": 0, "max_steps": 2,
        "warmup_steps": 0, "gradient_accumulation_steps": 1, "device": "cpu", "num_threads": THREADS,
        "export_at_end": False,
    }))
    return directory


def measured_peak(program, config, output, overrides):
    """Of a run to its end."""
    environment = dict(os.environ, GOMP_SPINCOUNT="0")
    command = [program, "train", str(config), f"output_dir={output}", *overrides]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks = grown_peaks([run], output)
    assert run.returncode == 0, run.stderr.read()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    return peaks[0]


# bf16 has few tokens: without AVX-512 a CPU takes 20 times longer for it than for fp32.
RUNS = {
    "fp32 keep": ("precision=fp32", "gradient_checkpointing=false", "max_length=512",
                  "per_device_train_batch_size=2"),
    "fp32 recompute": ("precision=fp32", "gradient_checkpointing=true", "max_length=512"),
    "bf16 keep": ("precision=bf16", "gradient_checkpointing=false", "max_length=80"),
    "bf16 recompute, fp32 gradients": ("precision=bf16", "gradient_checkpointing=true", "max_length=80",
                                       "gradient_accumulation_steps=2"),
    "bf16 recompute, split masters": ("precision=bf16", "gradient_checkpointing=true", "max_length=80",
                                      "gradient_accumulation_steps=2", "master_weights=split"),
    "fp8 keep": ("precision=bf16", "fp8=true", "gradient_checkpointing=false", "max_length=80"),
}


@pytest.mark.xdist_group("large-memory")
@pytest.mark.parametrize("name", RUNS)
def test_memory_within_five_percent(satune, model, tmp_path, name):
    config, overrides = model / "config.json", RUNS[name]
    planned = plan(satune, config, *overrides, "--device", "cpu")["stages"][0]
    state = sum(planned["memory_bytes"][part] for part in ("weights", "gradients", "master", "moments"))
    assert state > 1 << 30
    measured = measured_peak(satune, config, tmp_path / "run", overrides)
    error = planned["total_bytes"] / measured - 1
    print(f"{name}: planned {planned['total_bytes'] / 2**20:.1f} MiB, measured {measured / 2**20:.1f}, {error:+.1%}")
    assert abs(error) < TOLERANCE, planned["memory_bytes"]


SHAPES = (ROOT / "configs" / "llama3-8b-sa.json", f"model_name_or_path={ROOT / 'configs' / 'arch-llama3-8b.json'}",
          "sharing.layers=")


def test_architecture_file_is_enough(satune):
    """The 16 bytes a parameter of bf16 training (119.7 GiB) and their cuts."""
    one = plan(satune, *SHAPES, "--device", "h200", "gradient_accumulation_steps=1")
    assert one["parameters"] == 8030261248
    state = sum(one["stages"][0]["memory_bytes"][part] for part in ("weights", "gradients", "master", "moments"))
    assert state / 2**30 == pytest.approx(119.7, abs=0.1)
    eight = plan(satune, *SHAPES, "--device", "h100", "--world-size", 8)
    assert eight["zero_stage"] == 1 and "stage 0 would need" in eight["reason"]
    totals = [stage["total_bytes"] for stage in eight["stages"]]
    assert totals == sorted(totals, reverse=True)
    assert [stage["fits"] for stage in eight["stages"]] == [False, True, True, True]
    assert eight["prediction"]["hidden_fraction"] > 0


def test_table_marks_the_stage_and_says_prediction(satune):
    text = call(satune, "plan", *SHAPES, "--device", "h100", "--world-size", 8, "--stage", 3).stdout
    assert "* stage 3" in text and "zero_stage: 3, as configured" in text
    assert "prediction" in text and "hidden" in text and "too large" in text
    unknown = call(satune, "plan", *SHAPES, "--device", "24GiB").stdout
    assert "of 24.0 GiB" in unknown and "no prediction" in unknown
    assert "tokens/s" in call(satune, "plan", *SHAPES, "--device", "24GiB", "--flops", "1e14").stdout


def test_policies_and_cards(satune):
    """What each policy keeps and costs, and what a card of each size has room for: the sizes say the same."""
    one = plan(satune, *SHAPES, "--device", "h200", "gradient_accumulation_steps=1")
    keep, selective, recompute = one["policies"]
    assert [policy["gradient_checkpointing"] for policy in one["policies"]] == ["false", "selective", "true"]
    assert keep["activation_bytes"] > selective["activation_bytes"] > recompute["activation_bytes"]
    # A forward more of three passes' work, but for the head and the last layers' part in it.
    assert 1.2 < recompute["step_seconds"] / keep["step_seconds"] < 4 / 3
    configured = one["stages"][0]
    assert recompute["total_bytes"] == configured["total_bytes"]  # gradient_checkpointing: true
    working = configured["working_bytes"]
    assert configured["memory_bytes"]["working"] >= max(working.values()) > 0
    for card in one["cards"]:
        fits = {mode: stage is not None for mode, stage in card["lowest_stage"].items()}
        for mode, policy in zip(("keep", "selective", "recompute"), one["policies"]):
            assert fits[mode] == (policy["total_bytes"] <= card["available_bytes"]), card
    assert [card["lowest_stage"]["recompute+offload"] for card in one["cards"]][-1] == 0

    eight = plan(satune, *SHAPES, "--device", "h100", "--world-size", 8)
    card = next(card for card in eight["cards"] if "H100" in card["card"])
    assert card["lowest_stage"]["recompute"] == eight["zero_stage"] == 1
    text = call(satune, "plan", *SHAPES, "--device", "h100", "--world-size", 8).stdout
    assert "lowest ZeRO stage on cards of" in text and "selective" in text


def test_memory_modes_in_bytes_a_parameter(satune):
    """What the optimizer keeps of Llama-3-8B at 8k tokens, where it fits, and what is proposed where it does not."""
    long = (*SHAPES, "max_length=8192", "gradient_accumulation_steps=1")

    def mode(device, masters, moments):
        return plan(satune, *long, "--device", device, f"master_weights={masters}", f"optimizer_moments={moments}")

    for masters, moments, expected in (("fp32", "fp32", 12), ("split", "fp32", 10.125), ("none", "fp32", 8),
                                       ("split", "8bit", 4.15625), ("none", "bf16", 4), ("none", "8bit", 2.03125)):
        planned = mode("h200", masters, moments)
        memory = planned["stages"][0]["memory_bytes"]
        assert planned["bytes_per_parameter"]["optimizer"] == expected
        assert (memory["master"] + memory["moments"]) / planned["parameters"] == pytest.approx(expected, rel=1e-3)
    assert mode("h200", "split", "fp32")["stages"][0]["fits"]  # what fp32 masters are, to the bit
    assert mode("h100", "none", "8bit")["stages"][0]["fits"] and mode("h100", "split", "8bit")["stages"][0]["fits"]
    assert not mode("h100", "split", "fp32")["stages"][0]["fits"]
    text = call(satune, "plan", *long, "--device", "h100").stdout
    assert "with optimizer_offload=cpu it needs" in text
    assert "or without offload, with master_weights=split optimizer_moments=8bit, " in text
    assert "optimizer      12 bytes a trained parameter: master 4, moments 8; 16 with weights 2 and gradients 2" in text
    # The cheapest that is enough, and nothing that would not help.
    assert "; with master_weights=split it needs" in call(satune, "plan", *long, "--device", "120GiB").stdout
    whole = call(satune, "plan", *long, "--device", "100GiB", "precision=fp32").stdout
    assert "optimizer_moments=8bit" in whole and "master_weights" not in whole


def test_whole_run_in_hours_and_money(satune, model):
    timed = plan(satune, *SHAPES, "--device", "h100", "--world-size", 8, "--steps", 1000, "--price", 2.5)
    run = timed["run"]
    assert run["steps"] == 1000
    assert run["hours"] == pytest.approx(1000 * timed["prediction"]["step_seconds"] / 3600)
    assert run["device_hours"] == pytest.approx(8 * run["hours"]) and run["cost"] == pytest.approx(20 * run["hours"])
    unknown = plan(satune, *SHAPES, "--device", "h100")["run"]
    assert unknown["steps"] is None and "architecture" in unknown["steps_from"]
    # 600 records, unpacked, in rows of 4: three epochs of 150 steps, as a dry run counts them.
    small = (model / "config.json", f"model_name_or_path={model / 'tokenizer'}", "max_steps=null", "num_train_epochs=3",
             "packing=false", "per_device_train_batch_size=2", "gradient_accumulation_steps=2", "max_length=256")
    assert plan(satune, *small)["run"]["steps"] == 450
    assert "450 steps (from the data)" in call(satune, "plan", *small).stdout


def test_predicts_with_the_rate_of_an_earlier_run(satune, model, tmp_path):
    """The same config must come out as it was measured."""
    settings = (model / "config.json", f"model_name_or_path={model / 'tokenizer'}", "max_steps=6", "max_length=64",
                "precision=fp32", "gradient_checkpointing=true", "num_threads=1")
    call(satune, "train", *settings, f"output_dir={tmp_path / 'run'}")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tokens = [row["num_tokens"] - before["num_tokens"] for before, row in zip(rows, rows[1:])]
    rates = sorted(count / row["step_seconds"] for count, row in list(zip(tokens, rows[1:]))[2:])
    planned = plan(satune, *settings, "--measured", tmp_path / "run")
    assert planned["prediction"]["measured"]
    assert planned["prediction"]["step_seconds"] == pytest.approx(planned["tokens_per_micro_step"] / rates[1], rel=1e-6)
    assert "(measured)" in call(satune, "plan", *settings, "--measured", tmp_path / "run").stdout
    assert "metrics.jsonl" in refused(satune, "plan", *settings, "--measured", tmp_path / "elsewhere")
    line = refused(satune, "plan", *settings, "--measured", tmp_path / "run", "--device", "h200")
    assert "found a run on the CPU, expected one on a card" in line
    # A run that was killed: the last line is torn, and only there that is no error.
    file = tmp_path / "run" / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 7, "num_tok')
    again = plan(satune, *settings, "--measured", tmp_path / "run")
    assert again["prediction"]["step_seconds"] == planned["prediction"]["step_seconds"]
    file.write_text('{"step": 0, "num_tok\n' + whole)
    line = refused(satune, "plan", *settings, "--measured", tmp_path / "run")
    assert f"error: {file}:1:21: syntax error" in line
    file.write_text(whole.replace('"num_tokens":', '"num_tokens":"x","other":', 1))
    line = refused(satune, "plan", *settings, "--measured", tmp_path / "run")
    assert "metrics.jsonl:1: key num_tokens: found the string" in line and "expected an integer" in line
    # A snapshot whose state.json is odd, of the same size: no checksums are compared for a look.
    file.write_text(whole)
    state = sorted((tmp_path / "run" / "snapshots").glob("step-*"))[-1] / "state.json"
    text = state.read_text()
    for old, new, words in (('"world": {\n    "size": 1', '"world": {\n    "size":""', ["world: key size", "the string"]),
                            ('"world": {', '"w0rld": {', ["key world", "an object"])):
        assert text.count(old) == 1 and len(new) == len(old)
        state.write_text(text.replace(old, new))
        line = refused(satune, "plan", *settings, "--measured", tmp_path / "run")
        assert all(word in line for word in ["state.json", "found", "expected", *words]), line
    state.write_text(text)
    file.write_text('{"step": 1}\n')
    assert "metrics.jsonl:1" in refused(satune, "plan", *settings, "--measured", tmp_path / "run")


def test_warns_before_a_run_that_will_not_fit(satune, model, tmp_path):
    """Of the memory that rows of max_length would take; here they are short, and the run goes through."""
    huge = (model / "config.json", f"model_name_or_path={model / 'tokenizer'}", "packing=false", "max_steps=1",
            "per_device_train_batch_size=200000", "max_length=2048", f"output_dir={tmp_path / 'run'}",
            "gradient_checkpointing=false", "unfrozen_parameters=[\"model.norm.weight\"]")
    for command in (["plan", *huge], ["train", *huge, "--dry-run", "--allow-changes"]):
        text = call(satune, *command).stdout
        assert "WARNING" in text and "gradient_checkpointing=true per_device_train_batch_size=" in text, text
    ran = call(satune, "train", *huge)
    assert "this run needs " in ran.stderr and "with gradient_checkpointing=true per_device" in ran.stderr


def test_offloaded_optimizer_is_in_host_memory(satune):
    here = plan(satune, *SHAPES, "--device", "h100", "--world-size", 2)["stages"][3]
    there = plan(satune, *SHAPES, "--device", "h100", "--world-size", 2, "optimizer_offload=cpu")["stages"][3]
    optimizer = here["memory_bytes"]["master"] + here["memory_bytes"]["moments"]
    pinned = 2 * (1 << 24) * (4 + 2)  # two pieces of fp32 sums and of bf16 weights
    assert there["host_bytes"] == optimizer + pinned and here["total_bytes"] - there["total_bytes"] == optimizer


def test_offloaded_activations_are_in_host_memory(satune):
    """What a long row's layers keep, and the proposal of it where nothing else is needed."""
    long = (*SHAPES, "max_length=131072", "gradient_accumulation_steps=1", "master_weights=none", "optimizer_moments=8bit")
    here = plan(satune, *long, "--device", "h200")["stages"][0]
    there = plan(satune, *long, "--device", "h200", "activation_offloading=true")["stages"][0]
    layer = 131072 * 4096 * 2
    assert here["total_bytes"] - there["total_bytes"] == 30 * layer and there["host_bytes"] == 31 * layer
    assert "; with activation_offloading=true it needs" in call(satune, "plan", *long, "--device", "h100").stdout


def test_first_proposes_to_do_without_the_matrices_of_eager(satune):
    eager = (*SHAPES, "max_length=8192", "gradient_accumulation_steps=1", "master_weights=none", "optimizer_moments=8bit",
             "attn_implementation=eager")
    assert "; with attn_implementation=auto it needs" in call(satune, "plan", *eager, "--device", "h100").stdout


def test_errors_are_one_line(satune, tmp_path):
    assert "--device" in refused(satune, "plan", *SHAPES, "--device", "h300")
    assert "--device" in refused(satune, "plan", *SHAPES, "--device", "80TB")
    assert "--device" in refused(satune, "plan", *SHAPES, "--device", "80"), "bytes?"
    assert "2^31 tokens" in refused(satune, "plan", *SHAPES, "max_length=1000000", "per_device_train_batch_size=10000000000")
    for value in ("nan", "inf", "-1", "0", "1e"):
        line = refused(satune, "plan", *SHAPES, "--flops", value)
        assert f"--flops: found {value}, expected a number above 0" in line, line
    refused(satune, "plan", *SHAPES, "--world-size", 0)
    refused(satune, "plan", *SHAPES, "--world-size", 16385)
    refused(satune, "plan", *SHAPES, "--stage", 4)
    for unused, word in ((("--stage", 3), "one rank"), (("--bandwidth", 1e9), "one rank"), (("--price", 2), "--measured")):
        line = refused(satune, "plan", *SHAPES, "--device", "80GiB", *unused)
        assert f"error: {unused[0]}: " in line and word in line, line
    assert "no_such_key" in refused(satune, "plan", *SHAPES, "no_such_key=1")
    (tmp_path / "arch.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    line = refused(satune, "plan", *SHAPES[:1], f"model_name_or_path={tmp_path / 'arch.json'}")
    assert str(tmp_path / "arch.json") in line
