"""Peak memory at size: loading and exporting need at most 1.15x the parameter bytes they keep, and the end of a run
needs what its steps needed.

Each command runs as a user runs it. What its process needs before any parameter is that of the same command stopped
just before it loads: LibTorch, tokenizer and records are there, and what the libraries take for their work is not,
so that it counts as ours.
"""

import json
import shutil
import subprocess
import time

import pytest
from memory import status_bytes
from sparse_model import write_sparse_model

# One after another where tests run side by side.
pytestmark = pytest.mark.xdist_group("large-memory")
ALLOWED = 1.15
END_OF_RUN = 64 << 20  # buffers of the snapshot's and the export's writers
SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2,
}
# 0.57 billion parameters, 1.1 GiB in bf16; most of them embeddings, which cost memory and no time.
LARGE = SMALL | {
    "vocab_size": 131072, "hidden_size": 2048, "intermediate_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# 104 million parameters: training keeps 16 bytes of each, a snapshot 12.
TRAINED = SMALL | {
    "vocab_size": 40960, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
RECORDS = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n + 1)))} for n in range(1, 9)]


def peak_memory(program, *arguments, code=0):
    """Highest resident bytes of the program, file pages among them; read until it ends."""
    with subprocess.Popen([program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = status_bytes(process.pid, "VmHWM") or peak  # the last one: the first are the forked interpreter's
            time.sleep(0.002)
        output = process.stdout.read()
    assert process.returncode == code, output
    assert peak > 0
    return peak


def parameters(model):
    return json.loads((model / "model.safetensors.index.json").read_text())["metadata"]["total_size"] // 2


def check(what, measured, allowed):
    print(f"{what}: {measured / 2**20:.0f} MiB of {allowed / 2**20:.0f} allowed")
    assert measured <= allowed


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
    for name, config in {"large": LARGE, "trained": TRAINED}.items():
        found[name] = directory / name
        write_sparse_model(found[name], config, tokenizer)
    # A command over it stops where it opens the weights.
    found["unloadable"] = directory / "unloadable"
    shutil.copytree(found["large"], found["unloadable"], ignore=shutil.ignore_patterns("*.safetensors"))
    return found


def test_evaluating_keeps_the_weights_once(satune, models, records):
    def peak(name, code=0):
        return peak_memory(satune, "eval", models[name], "--task", f"response_loss={records}", "--max-records", 1,
                           "--precision", "bf16", code=code)

    kept = 2 * parameters(models["large"])
    assert kept > 1 << 30
    check("eval", peak("large") - peak("unloadable", code=2), ALLOWED * kept)


def test_sharing_streams(satune, models, tmp_path):
    def peak(name, code=0):
        return peak_memory(satune, "share", models[name], tmp_path / name, "--sharing", "2-3", code=code)

    # Nothing is kept: a piece at a time, and less than the largest tensor.
    check("share", peak("large") - peak("unloadable", code=2), 0.25 * LARGE["vocab_size"] * LARGE["hidden_size"] * 2)


def test_training_and_exporting_a_snapshot(satune, models, records, tmp_path):
    """pain: out of memory at the final save."""
    run, config, count = tmp_path / "run", tmp_path / "config.json", parameters(models["trained"])
    config.write_text(json.dumps({
        "model_name_or_path": str(models["trained"]), "train_file": str(records), "output_dir": str(run),
        "token_cache_dir": "", "val_size": 0, "sharing": {"layers": "2-3"}, "max_length": 128, "packing": False,
        "max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
        "precision": "bf16", "device": "cpu", "num_threads": 1,
    }))
    before = peak_memory(satune, "train", config, "--dry-run")
    peak = peak_memory(satune, "train", config)
    # bf16 weights and gradients, fp32 master and two moments.
    assert 16 * count > 1 << 30
    check("train", peak - before, ALLOWED * 16 * count)
    stepped = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["peak_memory_bytes"]
    snapshot_bytes = sum(file.stat().st_size for file in run.rglob("snapshots/*/*"))
    assert snapshot_bytes > 11 * count and (run / "export" / "model.safetensors").stat().st_size > 1.9 * count
    check("snapshot and export at the end", peak - stepped, END_OF_RUN)

    (tmp_path / "nothing" / "snapshots").mkdir(parents=True)
    before = peak_memory(satune, "export", tmp_path / "nothing", tmp_path / "out", code=2)
    check("export", peak_memory(satune, "export", run, tmp_path / "out") - before, 1.15 * 2 * count)
