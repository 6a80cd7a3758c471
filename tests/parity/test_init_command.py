"""`satune init` as a user runs it."""

import json

import make_models
import pytest
import torch
from programs import call, refused
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def test_init_makes_a_model_that_transformers_loads(satune, tmp_path, records):
    out = tmp_path / "base"
    arch = make_models.write_architecture(tmp_path)
    call(satune, "init", arch, out, "--train-tokenizer", records, "--vocab-size", 320, "--seed", 3)
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (320, 1, 2)
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    weights = model.model.layers[0].mlp.gate_proj.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1) and abs(weights.mean().item()) < 2e-3
    assert torch.equal(model.model.norm.weight, torch.ones(32))
    answer = json.loads(call(satune, "generate", out, "--instruction", "Hi", "--max-new-tokens", 3, "--json").stdout)
    assert 1 <= len(answer["tokens"]) <= 3

    call(satune, "init", arch, tmp_path / "again", "--tokenizer", out, "--seed", 3)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    call(satune, "init", arch, tmp_path / "other", "--tokenizer", out, "--seed", 4, "--dtype", "bfloat16", "--sharing", "4-5")
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert other["model.norm.weight"].dtype == torch.bfloat16
    assert "model.layers.4.self_attn.q_proj.weight" not in other
    assert not torch.equal(other["model.embed_tokens.weight"].float(), model.model.embed_tokens.weight.to(torch.bfloat16).float())


def test_init_refuses_ids_that_are_not_the_tokenizers(satune, tmp_path, stories):
    for changes, words in (
        ({"bos_token_id": 128000}, ["bos_token_id", "128000", "1"]),
        ({"eos_token_id": [5, 6]}, ["eos_token_id", "5", "2"]),
        ({"vocab_size": 100}, ["vocab_size", "100", "512"]),
    ):
        line = refused(satune, "init", make_models.write_architecture(tmp_path, **changes), tmp_path / "out", "--tokenizer", stories)
        assert all(word in line for word in words), line
        assert not (tmp_path / "out").exists()
