"""The reference dump for `satune diff`: complete, named as agreed, and what the oracle computes too."""

import subprocess

import dump_reference
import make_models
import oracle
import pytest
import torch
from safetensors.torch import load_file, save_file

TOKENS = [1, 9, 33, 7, 50, 50, 12, 3, 4]


def dump(model, output, *text):
    dump_reference.main([str(model), "--output", str(output), *text])
    return load_file(output)


def oracle_logits(directory):
    tokens = torch.tensor(TOKENS)
    starts = torch.tensor([0, len(tokens)])
    batch = {"tokens": tokens, "positions": torch.arange(len(tokens)), "document_starts": starts}
    return oracle.Oracle(directory, torch.float32).logits(batch)


@pytest.mark.parametrize("layers", ["", "3-4"])
def test_dump_holds_every_intermediate(tmp_path, layers):
    model = tmp_path / "model"
    make_models.write_model(model, "gqa", layers)
    tensors = dump(model, tmp_path / "dump.safetensors", "--tokens", ",".join(map(str, TOKENS)))
    n, heads, kv, dim, hidden, vocab = len(TOKENS), 4, 2, 8, 32, 97
    shapes = {"tokens": (n,), "embed": (n, hidden), "final_norm": (n, hidden), "logits": (n, vocab)}
    for i in range(6):
        if not layers or i not in (3, 4):
            shapes |= {f"layers.{i}.q": (n, heads, dim), f"layers.{i}.k": (n, kv, dim)}
        shapes |= {f"layers.{i}.v": (n, kv, dim), f"layers.{i}.attention": (n, heads * dim)}
        shapes[f"layers.{i}.out"] = (n, hidden)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert tensors["tokens"].tolist() == TOKENS
    assert (tensors["logits"] - oracle_logits(model)).abs().max() < 1e-4

    # The pieces fit together: each layer's output is the next one's input, and the dump is after RoPE.
    weights = load_file(model / "model.safetensors")
    final = tensors["layers.5.out"].double()
    normed = weights["model.norm.weight"] * final * torch.rsqrt(final.pow(2).mean(-1, keepdim=True) + 1e-5)
    assert (normed - tensors["final_norm"]).abs().max() < 1e-5
    embed = tensors["embed"].double()
    x = weights["model.layers.0.input_layernorm.weight"] * embed * torch.rsqrt(embed.pow(2).mean(-1, keepdim=True) + 1e-5)
    key = (x @ weights["model.layers.0.self_attn.k_proj.weight"].double().T).view(n, kv, dim)
    assert (key[0] - tensors["layers.0.k"][0]).abs().max() < 1e-5  # position 0 is not turned
    assert (key[1] - tensors["layers.0.k"][1]).abs().max() > 1e-2
    assert (key.norm(dim=-1) - tensors["layers.0.k"].norm(dim=-1)).abs().max() < 1e-5


def test_dump_of_a_prompt(realdata, tmp_path):
    tensors = dump(realdata / "stories260K_hf", tmp_path / "dump.safetensors", "--prompt", "Once upon a time")
    assert tensors["tokens"].tolist()[1:] == [403, 407, 261, 378]


def test_diff_finds_the_layer(satune, tmp_path):
    """`satune diff` agrees with an untouched model and names the first tensor that a changed weight reaches."""
    model, changed = tmp_path / "model", tmp_path / "changed"
    reference = tmp_path / "dump.safetensors"
    for directory in (model, changed):
        make_models.write_model(directory, "gqa", "3-4")
    dump(model, reference, "--tokens", ",".join(map(str, TOKENS)))
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"][0, 0] += 0.5
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})

    def diff(directory):
        return subprocess.run([satune, "diff", directory, "--reference", reference], capture_output=True, text=True)

    same, parted = diff(model), diff(changed)
    assert same.returncode == 0, same.stdout + same.stderr
    assert parted.returncode == 1, parted.stdout + parted.stderr
    assert "layers.2.v" in parted.stdout, parted.stdout
