"""A real trained Llama (stories260K) tells its known story, and wins back what Shared Attention costs it.

The fine-tune takes a few seconds of one core for each of the two runs; with SATUNE_FULL=1 it is many times as long.
"""

import json
import os
import subprocess

import make_models

CONFIG = {
    "template": "alpaca", "max_length": 512, "packing": True, "val_size": 0, "gradient_accumulation_steps": 1,
    "learning_rate": 2e-3, "warmup_steps": 10, "precision": "fp32",
    "gradient_checkpointing": False, "eval_steps": 0, "save_steps": 0, "logging_steps": 50, "num_threads": 1,
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tells_its_known_story(satune, stories):
    found = json.loads(run(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 64,
                           "--temperature", 0, "--precision", "fp32", "--json"))
    assert found["text"].strip().startswith(make_models.STORY)


def test_sharing_is_won_back_by_fine_tuning(satune, stories, realdata, tmp_path, capsys):
    records = json.loads((realdata / "alpaca_random9k" / "random_9k.json").read_text())
    train, heldout = tmp_path / "train.json", tmp_path / "heldout.json"
    train.write_text(json.dumps(records[:9000]))
    heldout.write_text(json.dumps(records[9000:]))
    steps, rows = (200, 8) if os.environ.get("SATUNE_FULL") == "1" else (30, 4)

    def loss(model, *options):
        out = run(satune, "eval", model, "--task", f"response_loss={heldout}", "--template", "alpaca",
                  "--max-length", 512, "--max-records", 100, "--precision", "fp32", "--json", *options)
        return json.loads(out)["tasks"]["response_loss"]["loss"]

    def tuned(name, **changes):
        folder = tmp_path / name
        config = tmp_path / f"{name}.json"
        config.write_text(json.dumps(CONFIG | {
            "model_name_or_path": str(stories), "train_file": str(train), "output_dir": str(folder),
            "max_steps": steps, "per_device_train_batch_size": rows} | changes))
        run(satune, "train", config)
        return folder / "export"

    before, direct = loss(stories), loss(stories, "--sharing", "3-4")
    shared = loss(tuned("shared", sharing={"layers": "3-4"}))
    dense = loss(tuned("dense"))
    with capsys.disabled():
        print(f"\nstories260K on held-out Alpaca records, loss per response token: dense {before:.4f}, sharing "
              f"3-4 untrained {direct:.4f}, trained {steps} steps {shared:.4f}, dense trained {dense:.4f}")
    assert direct > before + 0.05, "sharing without training has to cost something"
    assert shared < before, "the loss that sharing costs is won back"
    assert shared - dense < direct - before, "and the distance to the dense model shrinks"
