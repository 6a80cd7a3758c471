"""TensorBoard's own reader on the events of a run that was resumed, against metrics.jsonl."""

import json
import subprocess

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util


@pytest.fixture(scope="module")
def run(satune, realdata, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tensorboard")
    records = [{"instruction": f"Say {n}.", "output": "one two three " * (n % 5 + 1)} for n in range(40)]
    (directory / "train.json").write_text(json.dumps(records))
    (directory / "config.json").write_text(json.dumps({
        "model_name_or_path": str(realdata / "stories260K_hf"), "output_dir": str(directory / "run"),
        "train_file": str(directory / "train.json"), "token_cache_dir": "", "val_size": 4, "max_length": 512,
        "max_steps": 8, "eval_steps": 3, "save_steps": 2, "save_total_limit": 9, "precision": "fp32",
        "device": "cpu", "num_threads": 1, "export_at_end": False}))

    def train():
        done = subprocess.run([satune, "train", directory / "config.json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    train()
    # Back to step 4, as if the run had died there with two more steps in its logs.
    for step in (6, 8):
        for file in (directory / "run" / "snapshots" / f"step-{step:08}").iterdir():
            file.unlink()
        (directory / "run" / "snapshots" / f"step-{step:08}").rmdir()
    train()
    return directory / "run"


def test_rows_stand_once(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 8]


def test_tensorboard_reads_what_metrics_jsonl_says(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(list((run / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    values = {}
    for tag in events.Tags()["tensors"]:
        values[tag] = {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}
    for tag in events.Tags()["scalars"]:
        values[tag] = {e.step: e.value for e in events.Scalars(tag)}
    for tag, key in {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/learning_rate": "learning_rate",
                     "train/epoch": "epoch", "eval/loss": "eval_loss"}.items():
        expected = {row["step"]: row[key] for row in rows if key in row}
        assert values[tag].keys() == expected.keys(), tag
        assert all(values[tag][step] == pytest.approx(value, rel=1e-6) for step, value in expected.items()), tag
