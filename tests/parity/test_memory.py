"""Peak memory at size: loading and exporting need at most 1.15x the parameter bytes they keep.

Each command runs as a user runs it. What the process needs before any parameter (LibTorch, the tokenizer) is
that of the same command over a tiny model, and is taken off.
"""

import json
import pathlib
import subprocess
import time

import pytest
from test_train_command import write_sparse_model

# One after another where tests run side by side.
pytestmark = pytest.mark.xdist_group("large-memory")
ALLOWED = 1.15
SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2,
}
# 0.58 billion parameters, 1.1 GiB in bf16.
LARGE = SMALL | {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 10,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}
# 98 million parameters: training keeps 16 bytes of each, a snapshot 12.
TRAINED = SMALL | {
    "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 4,
}
RECORDS = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n + 1)))} for n in range(1, 9)]


def peak_memory(program, *arguments):
    """Highest resident bytes of the program, file pages among them; read until it ends."""
    with subprocess.Popen([program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        status, peak = pathlib.Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = int(line.split()[1]) * 1024  # the last one: the first are the forked interpreter's
            time.sleep(0.002)
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert peak > 0
    return peak


def parameters(model):
    return json.loads((model / "model.safetensors.index.json").read_text())["metadata"]["total_size"] // 2


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records.json"
    path.write_text(json.dumps(RECORDS))
    return path


@pytest.fixture(scope="module")
def models(satune, records, tmp_path_factory):
    """True-shape sparse models by name, with one tokenizer."""
    directory = tmp_path_factory.mktemp("models")
    (directory / "arch.json").write_text(json.dumps({key: SMALL[key] for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings", "rms_norm_eps")} | {"vocab_size": 320}))
    tokenizer = directory / "tokenizer"
    done = subprocess.run([satune, "init", directory / "arch.json", tokenizer, "--train-tokenizer", records],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, config in {"small": SMALL, "large": LARGE, "trained": TRAINED}.items():
        found[name] = directory / name
        write_sparse_model(found[name], config, tokenizer)
    return found


def test_evaluating_keeps_the_weights_once(satune, models, records):
    def peak(model):
        return peak_memory(satune, "eval", model, "--task", f"response_loss={records}", "--max-records", 1,
                           "--precision", "bf16")

    kept = 2 * parameters(models["large"])
    assert kept > 1 << 30
    assert peak(models["large"]) - peak(models["small"]) <= ALLOWED * kept


def test_sharing_streams(satune, models, tmp_path):
    def peak(name):
        return peak_memory(satune, "share", models[name], tmp_path / name, "--sharing", "2-3")

    weights = 2 * parameters(models["large"])
    # Nothing is kept: a tensor at a time.
    assert peak("large") - peak("small") <= 0.3 * weights


def train(satune, model, records, run):
    config = run.with_suffix(".json")
    config.write_text(json.dumps({
        "model_name_or_path": str(model), "train_file": str(records), "output_dir": str(run), "token_cache_dir": "",
        "val_size": 0, "sharing": {"layers": "2-3"}, "max_length": 128, "packing": False, "max_steps": 1,
        "warmup_steps": 0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "precision": "bf16",
        "device": "cpu", "num_threads": 1, "export_at_end": False,
    }))
    return peak_memory(satune, "train", config)


def test_training_and_exporting_a_snapshot(satune, models, records, tmp_path):
    runs = {name: tmp_path / f"run-{name}" for name in ("small", "trained")}
    peaks = {name: train(satune, models[name], records, run) for name, run in runs.items()}
    count = parameters(models["trained"])
    # bf16 weights and gradients, fp32 master and two moments; loading, a step and the snapshot included.
    assert peaks["trained"] - peaks["small"] <= ALLOWED * 16 * count
    snapshot_bytes = sum(file.stat().st_size for file in runs["trained"].rglob("snapshots/*/*"))
    assert snapshot_bytes > 11 * count

    peaks = {name: peak_memory(satune, "export", run, tmp_path / f"export-{name}") for name, run in runs.items()}
    assert peaks["trained"] - peaks["small"] <= ALLOWED * 2 * count
