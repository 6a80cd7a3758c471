"""launch/experiment.py on a model of a few steps: its table against what the evaluations say."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import pytest
from programs import built

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLANS = [{"layers": "2-3", "anchor": "before"}, {"layers": "1-3", "anchor": "first"}]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A folder with experiment.json of four layers and two seeds."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "arch.json").write_text(json.dumps({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "initializer_range": 0.05, "dtype": "float32"}))
    few = {"max_steps": 3, "warmup_steps": 0, "eval_steps": 0}
    text = json.dumps({"architecture": str(folder / "arch.json"), "base": "configs/quickstart-base.json",
                       "fine_tune": "configs/quickstart-finetune.json", "template": "configs/quickstart-template.json",
                       "seeds": [1, 2], "plans": PLANS, "base_settings": few, "fine_tune_settings": few}, indent=1)
    (folder / "experiment.json").write_text("// two seeds\n" + text)
    return folder


def run(folder, *arguments):
    environment = os.environ | {"SATUNE_BUILD_DIR": str(pathlib.Path(built("satune")).parent)}
    return subprocess.run([sys.executable, ROOT / "launch" / "experiment.py", "--experiment", folder / "experiment.json",
                           "--output", folder / "out", "--threads", "1", *arguments],
                          env=environment, capture_output=True, text=True)


def test_table_is_what_the_evaluations_say(experiment):
    done = run(experiment)
    assert done.returncode == 0, done.stderr
    table = json.loads((experiment / "out" / "table.json").read_text())

    def loss(seed, name):
        report = json.loads((experiment / "out" / f"seed-{seed}" / f"eval-{name}.json").read_text())
        return report["tasks"]["response_loss"]["loss"]

    for plan, row in zip(PLANS, table["plans"]):
        name = f"{plan['layers']}-{plan['anchor']}"
        costs = [loss(seed, f"{name}-direct") - loss(seed, "dense") for seed in (1, 2)]
        assert row["direct_cost"]["mean"] == pytest.approx(statistics.fmean(costs))
        assert row["direct_cost"]["stderr"] == pytest.approx(abs(costs[0] - costs[1]) / 2)
        left = [loss(seed, name) - loss(seed, "dense-more") for seed in (1, 2)]
        assert row["cost_after_fine_tuning"]["mean"] == pytest.approx(statistics.fmean(left))
        # Two of four layers lose q and k, and their part of the cache its keys.
        assert row["kv_cache_saved"] == pytest.approx(0.25) and 0 < row["parameters_saved"] < 1
        assert f"{plan['layers']} {plan['anchor']}" in done.stdout
    assert loss(1, "dense") != loss(2, "dense")

    again = run(experiment)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert "experiment: " not in again.stderr, "nothing is done twice"


def test_bad_experiments_are_refused(experiment, tmp_path):
    good = (experiment / "experiment.json").read_text()
    for text, words in {"{": "experiment.json", good.replace('"seeds"', '"seed"'): "expected an object with the keys",
                        good.replace("[\n  1,\n  2\n ]", "[]"): "seeds: found []"}.items():
        (tmp_path / "experiment.json").write_text(text)
        refused = run(tmp_path)
        assert refused.returncode == 1 and words in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    changed = good.replace('"max_steps": 3', '"max_steps": 4')
    (experiment / "experiment.json").write_text(changed)
    refused = run(experiment)
    (experiment / "experiment.json").write_text(good)
    assert refused.returncode == 1 and "found other settings" in refused.stderr
