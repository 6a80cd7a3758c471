"""`satune export` and the export of a run, as a user meets them; on disks that fail, too."""

import errno
import json
import os
import shutil
import subprocess

import pytest
import torch
from programs import call, refused
from safetensors.torch import load_file


def test_export_writes_what_the_run_exported(satune, stories, tmp_path, records):
    config = {
        "model_name_or_path": str(stories),
        "output_dir": str(tmp_path / "run"),
        "train_file": str(records),
        "val_size": 0,
        "max_length": 256,
        "max_steps": 4,
        "warmup_steps": 0,
        "save_steps": 2,
        "sharing": {"layers": "3-4"},
        "precision": "fp32",
        "learning_rate": 1e-3,
        "template": "alpaca_stanford",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    call(satune, "train", tmp_path / "config.json")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "run" / "export").iterdir()}
    call(satune, "export", tmp_path / "run", tmp_path / "newest")
    assert {path.name: path.read_bytes() for path in (tmp_path / "newest").iterdir()} == exported
    # The template that was trained is the one that is used from then on.
    answer = call(satune, "generate", tmp_path / "newest", "--instruction", "Hi", "--max-new-tokens", 2, "--json")
    assert json.loads(answer.stdout)["prompt"].endswith("### Response:")

    snapshots = tmp_path / "run" / "snapshots"
    call(satune, "export", snapshots / "step-00000002", tmp_path / "earlier", "--dtype", "bfloat16")
    earlier, newest = (load_file(tmp_path / name / "model.safetensors") for name in ("earlier", "newest"))
    assert earlier.keys() == newest.keys() and earlier["model.norm.weight"].dtype == torch.bfloat16
    # A damaged newest snapshot is left out of a run folder, and refused by name.
    shard = snapshots / "step-00000004" / "rank-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    call(satune, "export", tmp_path / "run", tmp_path / "fallback", "--dtype", "bfloat16")
    assert (tmp_path / "fallback" / "model.safetensors").read_bytes() == (
        tmp_path / "earlier" / "model.safetensors"
    ).read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    shard.write_bytes(flipped)
    call(satune, "export", tmp_path / "run", tmp_path / "flipped", "--dtype", "bfloat16")
    assert (tmp_path / "flipped" / "model.safetensors").read_bytes() == (
        tmp_path / "earlier" / "model.safetensors"
    ).read_bytes()
    assert "rank-00000.safetensors" in refused(satune, "export", snapshots / "step-00000004", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_template_file_is_carried_along(satune, stories, tmp_path, records):
    """pain: another prompt when served than when trained. The file may be gone or changed afterwards."""
    template = tmp_path / "mine.json"
    strings = {"prompt_with_input": "Q: {instruction} ({input})\n", "prompt_without_input": "Q: {instruction}\n",
               "response_header": "A:"}
    template.write_text(json.dumps(strings))
    settings = {"model_name_or_path": stories, "output_dir": tmp_path / "run", "train_file": records, "val_size": 0,
                "max_length": 256, "max_steps": 2, "warmup_steps": 0, "sharing.layers": "3-4", "precision": "fp32",
                "token_cache_dir": "", "template": "mine.json"}
    (tmp_path / "config.json").write_text("{}")
    overrides = [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run([satune, "train", "config.json", *overrides], cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    export, elsewhere = tmp_path / "run" / "export", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def prompt(model):
        done = subprocess.run([satune, "generate", model, "--instruction", "Hi", "--input", "you", "--max-new-tokens",
                               "2", "--json"], cwd=elsewhere, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["prompt"]

    def measured(model):
        done = subprocess.run([satune, "eval", model, "--task", f"response_loss={records}", "--json"], cwd=elsewhere,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["tasks"]

    loss = measured(export)
    for change in ("gone", "another"):
        template.unlink(missing_ok=True)
        if change == "another":
            template.write_text(json.dumps(strings | {"response_header": "B:"}))
        assert prompt(export) == "Q: Hi (you)\nA:"
        assert measured(export) == loss
        call(satune, "share", export, elsewhere / f"copy-{change}")
        assert prompt(elsewhere / f"copy-{change}") == "Q: Hi (you)\nA:"
        # From the snapshot, too: state.json holds the strings.
        call(satune, "export", tmp_path / "run", elsewhere / f"again-{change}")
        for name in ("satune_template.json", "chat_template.jinja", "generation_config.json"):
            assert (elsewhere / f"again-{change}" / name).read_bytes() == (export / name).read_bytes()

    # An export of an older build names the file only: the error says where that stands.
    (export / "satune_template.json").unlink()
    config = json.loads((export / "generation_config.json").read_text()) | {"satune_template": "old/mine.json"}
    (export / "generation_config.json").write_text(json.dumps(config))
    line = refused(satune, "generate", export, "--instruction", "Hi")
    assert "generation_config.json: satune_template" in line and "old/mine.json" in line and "--template" in line


def test_the_format_of_the_data_is_remembered(satune, stories, tmp_path):
    """A run on plain text exports without a chat template, although its data have moved."""
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time there was a dog. " * 20)
    (tmp_path / "config.json").write_text("{}")
    settings = {"model_name_or_path": stories, "output_dir": tmp_path / "run", "train_file": book, "max_length": 128,
                "max_steps": 2, "warmup_steps": 0, "sharing.layers": "3-4", "precision": "fp32", "token_cache_dir": ""}
    done = call(satune, "train", tmp_path / "config.json", *(f"{key}={value}" for key, value in settings.items()))
    assert "holds out nothing" in done.stderr  # the default val_size of a single document
    book.rename(tmp_path / "moved.txt")
    call(satune, "export", tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert not (tmp_path / "out" / "satune_template.json").exists()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def overrides(stories, records, run, **changes):
    settings = {"model_name_or_path": stories, "output_dir": run, "train_file": records, "val_size": 0, "max_length": 256,
                "max_steps": 2, "warmup_steps": 0, "sharing.layers": "3-4", "precision": "fp32", "token_cache_dir": "",
                "allow_changes": "true", "num_threads": 1}
    return [f"{key}={value}" for key, value in (settings | changes).items()]


def fault(shim, text, log):
    return os.environ | {"LD_PRELOAD": shim, "SATUNE_FAULT": text, "SATUNE_FAULT_LOG": str(log)}


@pytest.fixture(scope="module")
def finished(satune, stories, tmp_path_factory):
    """A folder with records, an empty config and a run of two steps: tests read it, or change a copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.json").write_text("{}")
    (folder / "records.json").write_text(json.dumps(
        [{"instruction": f"Count to {n}", "output": " ".join(map(str, range(n)))} for n in range(3, 11)]))
    call(satune, "train", folder / "config.json", *overrides(stories, folder / "records.json", folder / "run"))
    return folder


# The second call on config.json is its write; the 20th on the weights, one in their middle; the first on the folder
# makes it.
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("place", ["path=/.config.json.tmp- n=2", "path=/.model.safetensors.tmp- n=20", "path=/.out.tmp- n=1"])
def test_a_disk_that_fails_leaves_no_half_export(satune, shim, finished, tmp_path, place, error):
    run = finished / "run"
    earlier = contents(run / "export")
    folder = tmp_path / "exports"
    folder.mkdir()
    line = refused(satune, "export", run, folder / "out", code=3,
                   env=fault(shim, f"call=file {place} errno={error}", tmp_path / "struck"))
    assert (tmp_path / "struck").exists()
    assert os.strerror(error) in line and str(folder) in line, line
    assert list(folder.iterdir()) == []
    assert contents(run / "export") == earlier
    call(satune, "export", run, folder / "out")
    assert contents(folder / "out") == earlier


@pytest.mark.parametrize("what,code", [(f"errno={errno.ENOSPC}", 3), ("signal=9", -9)])
def test_an_earlier_export_stays_until_the_new_one_is_whole(satune, shim, stories, finished, tmp_path, what, code):
    run, config = shutil.copytree(finished / "run", tmp_path / "run"), finished / "config.json"
    earlier = contents(run / "export")
    more = overrides(stories, finished / "records.json", run, max_steps=3)
    env = fault(shim, f"call=file path=export-new.tmp- n=30 {what}", tmp_path / "struck")
    if code == 3:
        assert os.strerror(errno.ENOSPC) in refused(satune, "train", config, *more, code=3, env=env)
    else:
        call(satune, "train", config, *more, code=code, env=env)
    assert (tmp_path / "struck").exists()
    assert contents(run / "export") == earlier
    call(satune, "train", config, *more)
    assert contents(run / "export").keys() == earlier.keys()
    assert contents(run / "export")["model.safetensors"] != earlier["model.safetensors"]
    assert [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"] == []
