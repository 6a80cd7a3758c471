"""`satune share` as a user runs it."""

import json

import make_models
import pytest
import torch
from programs import call
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("shape", ["gqa", "tied"])
def test_share_copies_byte_for_byte(satune, tmp_path, shape):
    make_models.write_model(tmp_path / "dense", shape)
    source = load_file(tmp_path / "dense" / "model.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in source.items()}
    save_file(half, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    call(satune, "share", tmp_path / "dense", tmp_path / "copy")
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    assert copy.keys() == half.keys()
    assert all(torch.equal(copy[name].view(torch.int16), half[name].view(torch.int16)) for name in half)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "llama"
    call(satune, "share", tmp_path / "dense", tmp_path / "shared", "--sharing", "3-4")
    shared = load_file(tmp_path / "shared" / "model.safetensors")
    left_out = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (3, 4) for p in "qk"}
    assert half.keys() - shared.keys() == left_out
    assert all(torch.equal(shared[name].view(torch.int16), half[name].view(torch.int16)) for name in shared)
    assert json.loads((tmp_path / "shared" / "config.json").read_text())["dtype"] == "bfloat16"
