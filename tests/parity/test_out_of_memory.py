"""Memory that does not suffice: told before anything is trained, in one line, and nothing that was there is lost."""

import json
import subprocess
import time

import make_models
import pytest
from memory import status_bytes
from programs import call, refused

MIB = 1 << 20
SHORT = 4  # records before the long one


@pytest.fixture(scope="module")
def inputs(satune, tmp_path_factory):
    """A small model, short records, and the same with a long one at the end."""
    folder = tmp_path_factory.mktemp("inputs")
    records = [{"instruction": f"Count to {n}.", "output": "one two three"} for n in range(SHORT)]
    (folder / "short.json").write_text(json.dumps(records))
    long = {"instruction": "Count.", "output": " ".join(str(n % 10) for n in range(1500))}
    (folder / "late.json").write_text(json.dumps([*records, long]))
    make_models.write_architecture(folder, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                                   max_position_embeddings=4096)
    call(satune, "init", folder / "arch.json", folder / "model", "--train-tokenizer", folder / "late.json",
         "--vocab-size", 300)
    (folder / "config.json").write_text(json.dumps({
        "model_name_or_path": str(folder / "model"), "sharing": {"layers": "2-3"}, "token_cache_dir": "", "val_size": 0,
        "max_length": 4096, "packing": False, "shuffle": False, "max_steps": SHORT + 1, "warmup_steps": 0, "save_steps": 0,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "gradient_checkpointing": False,
        "precision": "fp32", "device": "cpu", "num_threads": 1, "export_at_end": False, "allow_changes": True,
    }))
    return folder


def arguments(inputs, data, output, **changes):
    more = {"train_file": inputs / f"{data}.json", "output_dir": output} | changes
    return ["train", inputs / "config.json", *(f"{key}={value}" for key, value in more.items())]


def most_allocated(program, command):
    """Highest VmData, which is what RLIMIT_DATA limits."""
    process = subprocess.Popen([program, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, status_bytes(process.pid, "VmData") or 0)
        time.sleep(0.002)
    assert process.returncode == 0, process.stderr.read()
    return most


def steps(run):
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_the_longest_sample_is_tried_first(satune, inputs, tmp_path):
    """pain: out of memory when the longest sample arrives late."""
    limit = most_allocated(satune, arguments(inputs, "short", tmp_path / "short")) + 64 * MIB
    call(satune, *arguments(inputs, "short", tmp_path / "again"), limit=limit)  # enough for all the others

    fresh = tmp_path / "fresh"
    line = refused(satune, *arguments(inputs, "late", fresh), code=3, limit=limit)
    assert "out of memory" in line and f"record {SHORT + 1} of " in line and "gradient_checkpointing" in line, line
    assert steps(fresh) == []

    # A run that had got somewhere keeps it, and goes on where there is memory.
    run = tmp_path / "run"
    call(satune, *arguments(inputs, "late", run, max_steps=2))
    assert "out of memory" in refused(satune, *arguments(inputs, "late", run, max_steps=4), code=3, limit=limit)
    assert steps(run) == [1, 2]
    assert [path.name for path in (run / "snapshots").iterdir()] == ["step-00000002"]
    call(satune, *arguments(inputs, "late", run, max_steps=4))
    assert steps(run) == [1, 2, 3, 4]
