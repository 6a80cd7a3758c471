"""`satune bench` and `satune train --profile` as a user meets them. What is counted is checked in
tests/trainer/bench_test.cpp and profile_test.cpp; times are never judged."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from programs import ROOT, call, refused

ARCHITECTURE = {
    "model_type": "llama", "vocab_size": 280, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "float32",
}
SMALL = ["--sequence-length", 32, "--precision", "fp32", "--steps", 2, "--warm-up", 1, "--device", "cpu", "num_threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "arch.json").write_text(json.dumps(ARCHITECTURE))
    (folder / "text.jsonl").write_text("".join(
        json.dumps({"text": " ".join(f"{(7 * n + i) % 50} sheep" for i in range(8 + n % 5))}) + "\n" for n in range(80)))
    return folder


def bench(satune, *arguments):
    return json.loads(call(satune, "bench", *arguments, "--json").stdout)


def matrices(shared=0):
    """Weights of products of ARCHITECTURE: shared layers have no q and k."""
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48
    return 280 * 32 + 4 * layer - shared * 32 * (32 + 16)


def test_training(satune, folder):
    output = folder / "training.json"
    call(satune, "bench", folder / "arch.json", *SMALL, "--sharing", "2-3", "--micro-batch", 2,
         "--gradient-accumulation-steps", 2, "--document-length", 16, "--peak-tflops", 2, "--output", output)
    report = json.loads(output.read_text())
    assert report["kind"] == "training" and report["layers"] == 4 and report["cut_to_layers"] is None
    assert report["peak_from"] == "--peak-tflops"
    dense, shared = report["runs"]
    assert (dense["sharing"], shared["sharing"]) == ("", "2-3")
    assert report["sharing_speed_ratio"] == pytest.approx(shared["tokens_per_s"] / dense["tokens_per_s"])
    for run, flops in ((dense, 6 * matrices() + 16 * 32 * 6 * 4), (shared, 6 * matrices(2) + 16 * 32 * (6 * 2 + 3 * 2))):
        assert run["flops_per_token"] == flops
        # Two turns.
        assert run["steps"] == len(run["step_seconds"]["all"]) == 4 and run["skipped_updates"] == 0
        assert run["tokens_per_s"] == pytest.approx(2 * 2 * 32 / run["step_seconds"]["median"])
        assert run["mfu"] == pytest.approx(flops * run["tokens_per_s"] / 2e12)
        assert run["step_seconds"]["p10"] <= run["step_seconds"]["median"] <= run["step_seconds"]["p90"]
        assert run["memory"]["peak_bytes"] >= run["memory"]["before_bytes"] > 0
        assert run["memory"]["planned_bytes"] == sum(run["memory"]["planned"].values())
        assert run["floors"]["gemm_flops_per_s"] > 0 and run["floors"]["copy_bytes_per_s"] > 0
        rows = {(row["segment"], row["pass"], row["part"]): row for row in run["segments"]}
        assert len(rows) == len(run["segments"])
        # A part of a step or its rest: nothing is left out, nothing counts twice.
        assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
        products = {"qkv projection", "output projection", "gate and up projection", "down projection", "head and loss"}
        counted = sum(row["flops"] for row in rows.values() if row["part"] in products and row["pass"] != "again")
        assert counted == 2 * 2 * 32 * 6 * matrices(0 if run is dense else 2)
        assert rows["layers", "forward", "attention"]["calls"] == 4 * 2
        assert rows["layers", "again", "attention"]["calls"] == 4 * 2  # gradient_checkpointing true
        assert rows["step", "", "optimizer"]["bytes"] >= 6 * 4 * run["parameters"]
        for row in rows.values():
            assert (row["ratio"] is None) == (row["floor_ms"] is None) == (row["flops"] == row["bytes"] == 0)


CARD = [sys.executable, ROOT / "tests" / "bench" / "card.py"]


def test_the_card_script_runs_where_there_is_none(satune, tmp_path):
    """Cases of every kind; those beside transformers take minutes. A case that fails costs neither the others nor its line."""
    only = ["checks", "long", "long-deterministic", "long-shared", "long-fp8", "packed", "long-8bit", "decode"]
    (tmp_path / "arch.json").write_text(json.dumps(ARCHITECTURE | {"max_position_embeddings": 128}))
    options = ["--program", satune, "--architecture", tmp_path / "arch.json", "--device", "cpu", "--lengths", 64, 32,
               "--sharing", "2-3", "--steps", 1, "--max-batch", 2, "--output", tmp_path]
    done = call(*CARD, *options, "--only", *only, env=os.environ | {"OMP_NUM_THREADS": "1"})
    report = (tmp_path / "report.md").read_text()
    assert report in done.stdout and "steps repeat their bits: yes" in report
    assert "FAILED" not in report and "exit code" not in report
    for name in only[1:]:
        assert json.loads((tmp_path / f"{name}.json").read_text())["runs"]
        assert f"| {name}" in report and f"- {name} (" in report
    for words in ("deterministic=true costs", "fp8 is", "times as fast as dense", "layers backward"):
        assert words in report
    # A model of four layers has none of this plan's.
    options[options.index("2-3")] = "7-9"
    text = call(*CARD, *options, "--only", "long-shared", "long").stdout
    assert "long-shared: exit code 2: satune: error: " in text and "| long | dense |" in text


def test_the_card_script_names_its_cases(satune):
    lines = call(*CARD, "--list", "--program", satune).stdout.splitlines()
    assert len(lines) >= 20 and all(" bench configs/" in line or "train_peer.py" in line for line in lines)
    wrong = call(*CARD, "--only", "longest", "--program", satune, code=2).stderr
    assert "--only: found longest, expected one of checks, long, " in wrong


def test_a_cut_model_says_so(satune, folder):
    report = bench(satune, folder / "arch.json", *SMALL, "--layers", 2, "--gradient-checkpointing", "false")
    assert report["layers"] == report["cut_to_layers"] == 2
    run, = report["runs"]
    assert run["parameters"] == 2 * 280 * 32 + 32 + 2 * ((matrices() - 280 * 32) // 4 + 64)
    assert not [row for row in run["segments"] if row["pass"] == "again"]
    done = call(satune, "bench", folder / "arch.json", *SMALL[:4], "--warm-up", 1, *SMALL[8:], "--layers", 2, "--steps", 1)
    text = done.stdout
    assert "dense: 1 step after 1" in done.stderr and "cpu, 1 thread, fp32" in text
    assert "cut by --layers: not the whole model" in text and "MFU" in text and "layers forward  attention" in text


def test_ranks(satune, folder):
    report = bench(satune, folder / "arch.json", *SMALL, "--nproc-per-node", 2, "--zero-stage", 3)
    assert report["place"]["world_size"] == 2
    run, = report["runs"]
    assert run["zero_stage"] == 3
    assert run["tokens_per_s"] == pytest.approx(2 * 32 / run["step_seconds"]["median"])
    parts = {row["part"] for row in run["segments"]}
    assert {"all-gather of parameters", "reduce-scatter of gradients", "exchange of loss and norm"} <= parts


def test_decoding(satune, folder):
    report = bench(satune, folder / "arch.json", "--decode", "--sharing", "2-3", "--prompt-length", 5, "--new-tokens", 3,
                   "--max-batch", 3, "--precision", "fp32", "--device", "cpu", "num_threads=1")
    assert report["kind"] == "decoding" and report["ended_by"] == "--max-batch"
    dense, shared = report["runs"]
    assert dense["kv_bytes_per_token"] == 2 * 4 * 16 * 4 and shared["kv_bytes_per_token"] == (2 * 4 - 2) * 16 * 4
    for run in (dense, shared):
        assert [row["batch"] for row in run["batches"]] == [1, 2]
        for row in run["batches"]:
            assert row["tokens_per_s"] == pytest.approx(1000 * row["batch"] / row["step_ms"])
            assert row["kv_bytes"] == 8 * row["batch"] * run["kv_bytes_per_token"]
            assert row["kv_bytes"] + row["kv_bytes_saved"] == 8 * row["batch"] * dense["kv_bytes_per_token"]


@pytest.mark.parametrize("arguments, words", [
    (["--sequence-length", 65], "--sequence-length: found 65, expected at most 64, the model's max_position_embeddings"),
    (["--sequence-length", 32, "--document-length", 5], "--document-length: found 5, expected a divisor of"),
    (["--sequence-length", 32, "--document-length", 100], "--document-length: found 100, expected a divisor of --sequence-length 32"),
    (["--sequence-length", 256, "--document-length", 128], "--document-length: found 128, expected at most 64"),
    (["--sequence-length", 32, "--layers", 5], "--layers: found 5, expected at most 4"),
    (["--sequence-length", 32, "--layers", 2, "--sharing", "2-3"], 'error: --sharing "2-3": found layer 2, expected layers 0 to 1'),
    (["--sequence-length", 32, "--anchor", "first"], "--anchor: found first, expected --sharing"),
    (["--sequence-length", 32, "--precision", "fp8"], "precision"),
    (["--sequence-length", 32, "learning_rate=1"], "found learning_rate=1, expected key=value with one of"),
    (["--sequence-length", 32, "--steps", 0], "--steps: found 0, expected a whole number from 1 to 2147483648"),
    (["--sequence-length", 32, "--steps", "x"], "--steps: found x, expected a whole number from 1 to 2147483648"),
    (["--sequence-length", 32, "--peak-tflops", -1], "--peak-tflops"),
    (["--sequence-length", 32, "--nproc-per-node", 3, "shard_group_size=2"],
     "error: command line: shard_group_size: found 2, expected a divisor of the number of processes, 3"),
    (["--decode", "--steps", 3], "excludes"),
    *((["--decode", word], f"error: {word}: found --decode, which does not read it, expected a training step")
      for word in ("fp8=true", "optimizer_offload=cpu", "attn_implementation=eager", "ddp_timeout=9")),
    (["--max-batch", 3], "--decode"),
    (["--decode", "--prompt-length", 60, "--new-tokens", 5], "found 65, expected at most 64"),
    (["--sequence-length", 32, "--output", "/nowhere/bench.json"], "/nowhere"),
])
def test_bad_lines(satune, folder, arguments, words):
    assert words in refused(satune, "bench", folder / "arch.json", "--device", "cpu", *arguments)


def test_a_place_that_takes_no_file_shows_before_the_measurement(satune, folder):
    for more in ((*SMALL,), (*SMALL, "--nproc-per-node", 2), ("--decode", "--device", "cpu")):
        line = refused(satune, "bench", folder / "arch.json", *more, "--output", "/proc/bench.json", code=3)
        assert "/proc/bench.json: cannot be created" in line


def test_a_missing_model(satune, folder):
    assert "none.json" in refused(satune, "bench", folder / "none.json")


@pytest.mark.parametrize("sent, shape, begun", [
    (signal.SIGINT, [*SMALL[:4], "--steps", 1000000], "1000000 steps"),
    (signal.SIGTERM, [*SMALL[:4], "--steps", 1000000, "--nproc-per-node", 2], "1000000 steps"),
    (signal.SIGINT, ["--decode", "--precision", "fp32", "--prompt-length", 1, "--new-tokens", 63, "--max-batch", 1 << 30], "batch 64"),
])
def test_a_signal_leaves_no_file_and_says_so(satune, folder, tmp_path, sent, shape, begun):
    run = subprocess.Popen([satune, "bench", str(folder / "arch.json"), *map(str, shape), "--device", "cpu", "num_threads=1",
                            "--output", str(tmp_path / "bench.json")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while begun not in (line := run.stderr.readline()):
        assert line
    time.sleep(0.1)
    run.send_signal(sent)
    out, log = run.communicate(timeout=60)
    told = "satune: stopped by a signal: nothing was written, and the same command begins anew"
    assert run.returncode == -sent and [line for line in log.splitlines() if not line.startswith("[")] == [told], log
    assert not list(tmp_path.iterdir()) and out == ""


@pytest.fixture(scope="module")
def config(satune, folder):
    call(satune, "init", folder / "arch.json", folder / "model", "--train-tokenizer", folder / "text.jsonl",
         "--vocab-size", 280)
    config = folder / "config.json"
    config.write_text(json.dumps({
        "model_name_or_path": str(folder / "model"), "train_file": str(folder / "text.jsonl"), "token_cache_dir": "",
        "output_dir": str(folder / "run"), "val_size": 0, "max_length": 32, "max_steps": 5, "warmup_steps": 0,
        "gradient_accumulation_steps": 1, "precision": "fp32", "device": "cpu", "num_threads": 1, "export_at_end": False}))
    return config


def test_profile_of_two_ranks(satune, config):
    done = call(satune, "train", config, "--nproc-per-node", 2, "zero_stage=3", "--profile", 2)
    assert "segment" in done.stderr and "layer forward" in done.stderr
    for rank in (0, 1):
        events = json.loads((config.parent / "run" / "profile" / f"rank{rank}.json").read_text())["traceEvents"]
        rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
        assert "host" in rows.values() and "communication" in rows.values()
        spans = [event for event in events if event["ph"] == "X"]
        assert all(event["dur"] >= 0 and event["pid"] == rank for event in spans)
        # Once a step every segment's gradients, and its parameters once or twice.
        reductions = [event for event in spans if event["args"]["kind"] == "reduction of segment"]
        assert len(reductions) == 2 * 6
        assert all(rows[event["tid"]].startswith("communication") for event in reductions)
        assert [event for event in spans if event["args"]["kind"] == "gather of segment"]


def test_a_second_profile_says_that_it_replaces_the_first(satune, config):
    def profiled(steps):
        return call(satune, "train", config, f"output_dir={config.parent / 'again'}", f"max_steps={steps}", "--allow-changes",
                    "--profile", 1).stderr

    assert "in the place of an earlier one" not in (first := profiled(3)) and "profile of 1 step: " in first
    assert "rank0.json (open it in ui.perfetto.dev), in the place of an earlier one" in profiled(6)


@pytest.mark.parametrize("arguments, words", [
    (["--profile", "0"], "--profile: found 0, expected 1 to 100 steps"),
    (["--profile", "101"], "--profile: found 101"),
    (["--profile", "two"], "--profile: found two, expected a whole number"),
    (["--nproc-per-node", "two"], "--nproc-per-node: found two, expected a whole number"),
    (["--profile", "2", "--profile", "3"], "--profile: found 2 of them, expected one"),
    (["--profile"], "--profile: found nothing, expected a value"),
    (["--profile", "2", "--dry-run"], "--profile: found --dry-run"),
])
def test_bad_profiles(satune, config, arguments, words):
    assert words in refused(satune, "train", config, *arguments)
