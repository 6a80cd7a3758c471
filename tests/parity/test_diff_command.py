"""`satune diff` as a user runs it."""

import pathlib
import subprocess
import sys

import pytest
import torch
from programs import call, refused
from safetensors.torch import load_file, save_file

DUMP_TOOL = pathlib.Path(__file__).with_name("dump_reference.py")


@pytest.fixture
def dump(tmp_path, stories):
    """(model directory, dump) of the real model, shared over layers 3-4."""
    path = tmp_path / "dump.safetensors"
    command = [sys.executable, DUMP_TOOL, stories, "--tokens", "1,403,407,261,378,410,33,12", "--output", path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    return path


def test_diff_agrees_with_transformers(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump).stdout
    for name in ("embed", "layers.0.q", "layers.4.attention", "final_norm", "logits"):
        assert f"\n{name} " in done
    assert done.splitlines()[-1].startswith(f"{3 + 5 * 5} tensors agree")


def test_diff_names_the_first_element_that_parts(satune, stories, dump):
    tensors = load_file(dump)
    tensors["layers.2.v"][3, 1, 5] += 0.5
    tensors["logits"][0, 0] += 1
    save_file(tensors, dump)
    done = call(satune, "diff", stories, "--reference", dump, code=1).stdout
    assert "first to part: layers.2.v[3, 1, 5]" in done.splitlines()[-1]
    assert "1 of 256 elements" in done.splitlines()[-1]
    call(satune, "diff", stories, "--reference", dump, "--atol", 2)


def test_diff_finds_where_sharing_begins(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump, "--sharing", "3-4", code=1).stdout
    assert "first to part: layers.3.q[" in done.splitlines()[-1]


def test_diff_refuses_what_is_no_dump_of_this_model(satune, stories, dump, tmp_path):
    tensors = load_file(dump)
    save_file({"tokens": tensors["tokens"], "logits": tensors["logits"][:, :5].contiguous()}, tmp_path / "small.safetensors")
    assert "tensor logits" in refused(satune, "diff", stories, "--reference", tmp_path / "small.safetensors")
    save_file({"tokens": torch.tensor([1, 512])}, tmp_path / "outside.safetensors")
    assert "512" in refused(satune, "diff", stories, "--reference", tmp_path / "outside.safetensors")
    save_file({"logits": tensors["logits"]}, tmp_path / "none.safetensors")
    assert "tensor tokens" in refused(satune, "diff", stories, "--reference", tmp_path / "none.safetensors")
