"""`satune train` as a user meets it: the configs that ship, --dry-run on true-shape models, errors and help."""

import json
import shutil

import make_models
import pytest
from programs import ROOT, call, refused
from sparse_model import write_sparse_model

GIB = 1 << 30


@pytest.fixture(scope="module")
def llama3_8b(tmp_path_factory, realdata):
    directory = tmp_path_factory.mktemp("sparse") / "llama3-8b"
    config = json.loads((realdata / "cfg_llama3_8b" / "config.json").read_text())
    write_sparse_model(directory, config, realdata / "tok_llama3")
    return directory


@pytest.fixture(scope="module")
def llama2_7b(tmp_path_factory, realdata):
    directory = tmp_path_factory.mktemp("sparse") / "llama2-7b"
    config = json.loads((realdata / "tok_llama2" / "config.json").read_text())
    write_sparse_model(directory, config, realdata / "tok_llama2")
    return directory


def dry_run(satune, config, model, data, tmp_path, *more):
    # Weights are not read: 16 GB of them would not fit the limit on what is allocated.
    return call(satune, "train", ROOT / "configs" / config, f"model_name_or_path={model}", f"train_file={data}",
                f"output_dir={tmp_path / 'run'}", f"token_cache_dir={tmp_path / 'cache'}", "num_threads=1", *more,
                "--dry-run", limit=4 * GIB).stdout


def test_shipped_llama3_config_on_true_shapes(satune, llama3_8b, realdata, tmp_path):
    data = realdata / "alpaca_random9k" / "random_9k.json"
    plan = dry_run(satune, "llama3-8b-sa.json", llama3_8b, data, tmp_path)
    assert "32 layers" in plan and "7.95G parameters" in plan  # 8.03G less q and k of four layers
    assert "layers 23-26 (anchor before): 4 of 32" in plan
    assert "rows" in plan and "packed" in plan
    assert "warm-up" in plan and "% of the run" in plan
    assert "target tokens" in plan
    assert "GiB each" in plan and "free under" in plan
    assert "estimated" in plan
    # One example, with the end of the response as a target and the prompt's tokens without.
    assert '"Below"' in plan and '<|end_of_text|>"' in plan
    assert not (tmp_path / "run").exists()


def test_shipped_paper_recipe_on_true_shapes(satune, llama3_8b, realdata, tmp_path):
    data = realdata / "alpaca_random9k" / "random_9k.json"
    plan = dry_run(satune, "llama3-8b-sa-paper.json", llama3_8b, data, tmp_path)
    assert "one sample each" in plan
    assert "32 rows = 16 a micro-batch x 2 accumulated" in plan


def test_shipped_llama2_config_on_true_shapes(satune, llama2_7b, realdata, tmp_path):
    data = realdata / "alpaca_random9k" / "random_9k.json"
    plan = dry_run(satune, "llama2-7b-sa.json", llama2_7b, data, tmp_path)
    assert "sentencepiece of 32000 ids" in plan
    assert '</s>"' in plan


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, realdata):
    """A tiny model with a tokenizer, records, and a config that trains it for 6 steps."""
    directory = tmp_path_factory.mktemp("tiny")
    records = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(1, n + 1)))}
               for n in range(1, 33)]
    (directory / "train.json").write_text(json.dumps(records))
    config = json.loads((realdata / "stories260K_hf" / "config.json").read_text())
    assert config["num_hidden_layers"] == 5
    (directory / "config.json").write_text(json.dumps({
        "model_name_or_path": str(realdata / "stories260K_hf"),
        "output_dir": str(directory / "run"),
        "sharing": {"layers": "3-4"},
        "train_file": str(directory / "train.json"),
        "token_cache_dir": "",
        "val_size": 4,
        "max_length": 512,
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 2,
        "precision": "fp32",
        "device": "cpu",
        "num_threads": 1,
    }))
    return directory


def test_dry_run_of_a_tiny_model(satune, tiny):
    plan = call(satune, "train", tiny / "config.json", "--dry-run").stdout
    assert "28 samples of 28 records" in plan or "28 samples of 32 records" in plan
    assert "resume      nothing to take up" in plan
    assert "2 accumulated\n" in plan, "no word of ranks where there is one"
    assert not (tiny / "run").exists()


def test_print_config_is_a_config(satune, tiny, tmp_path):
    printed = call(satune, "train", tiny / "config.json", "max_steps=4", "--print-config").stdout
    (tmp_path / "again.json").write_text(printed)
    assert call(satune, "train", tmp_path / "again.json", "--print-config").stdout == printed
    assert '"max_steps": 4' in printed
    assert "// peak of the schedule" in call(satune, "train", "--print-config").stdout


def test_print_config_takes_overrides_without_a_file(satune):
    printed = call(satune, "train", "--print-config").stdout
    for override in ("learning_rate=0.5", "--learning_rate=0.5"):
        assert '"learning_rate": 0.5' in call(satune, "train", "--print-config", override).stdout
        assert '"learning_rate": 0.5' in call(satune, "train", override, "max_steps=3", "--print-config").stdout
    assert '"learning_rate": 0.5' not in printed
    assert "found no CONFIG" in refused(satune, "train", "learning_rate=0.5")


def test_errors_name_what_was_found_and_expected(satune, tiny, tmp_path):
    config = tiny / "config.json"
    assert "found no command" in refused(satune)
    assert "expected train" in refused(satune, "trian", config)
    assert "expected --dry-run" in refused(satune, "train", config, "--dry-rum")
    assert "expected --max_steps=VALUE" in refused(satune, "train", config, "--max-steps", "5")
    assert "expected learning_rate" in refused(satune, "train", config, "--lr=1")
    assert "expected max_length" in refused(satune, "train", config, "cutoff_len=1")
    assert "missing.json" in refused(satune, "train", tmp_path / "missing.json")
    arch = tmp_path / "arch.json"
    arch.write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    for command in ("train", "plan"):
        assert 'arch.json: found a model\'s config.json (the key "model_type"), expected settings' in refused(satune, command, arch)
    assert "found no CONFIG" in refused(satune, "train")
    assert "key=value" in refused(satune, "train", config, "learning_rate")
    assert "log-level" in refused(satune, "--log-level", "loud", "train", config)
    for override, words in {
        "model_name_or_path=/nowhere": ["/nowhere"],
        "train_file=/nowhere.json": ["/nowhere.json"],
        "template=alpacca": ["alpacca"],
        "sharing.layers=3-9": ["9"],
        "unfrozen_parameters=model.layer.1": ["unfrozen_parameters", "matches no tensor"],
        "warmup_steps=6": ["warmup_steps", "shorter than the run"],
        "output_dir=/proc/version/run": ["output_dir"],
        "resume=autoo": ['resume: found "autoo"', '"never" or a snapshot folder', 'mean "auto"'],
    }.items():
        line = refused(satune, "train", config, override, "--dry-run")
        assert all(word in line for word in words), line


def test_half_an_environment_of_ranks_is_refused(satune, tiny):
    line = refused(satune, "train", tiny / "config.json", env={"WORLD_SIZE": "2", "PATH": "/usr/bin"})
    assert "RANK: found nothing" in line and "WORLD_SIZE=2" in line


def test_a_tokenizer_larger_than_the_vocabulary(satune, tiny, tmp_path, realdata):
    make_models.write_model(tmp_path / "model", "gqa", seed=0)
    for file in (realdata / "tok_llama2").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    line = refused(satune, "train", tiny / "config.json", f"model_name_or_path={tmp_path / 'model'}",
                   "sharing.layers=", "--dry-run")
    assert "32000 ids" in line and "vocab_size" in line


def test_version_and_help(satune):
    assert call(satune, "--version").stdout.startswith("satune ")
    text = call(satune, "train", "--help").stdout
    assert "--dry-run" in text and "learning_rate" in text and "satune train" in text
    everything = call(satune, "--help").stdout
    for command in ("init", "train", "export", "share", "generate", "eval", "diff"):
        assert command in everything
