"""Tiny random Hugging Face directories, seeded, for the parity tests.

Each shape is one line of SHAPES; write_model() writes config.json and model.safetensors with the tensor names
of a plain Llama or of an exported Shared-Attention model. No transformers, no satune: the files are what they
are by the format's definition.
"""

import argparse
import json
import os
import pathlib
import shutil
import zlib

import torch
from safetensors.torch import save_file

# What shared/realdata/stories260K_hf tells from BOS on, as transformers decodes it greedily in fp32.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high."
)
EXPORT_CODE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "model", "export")
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}
# name -> what differs from BASE; "keys" says which transformers' config keys the file uses.
SHAPES = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True, "vocab_size": 131},
    "head_dim": {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 64},
    "mha": {"num_key_value_heads": 4, "hidden_size": 48, "head_dim": 12, "rope_theta": 500000.0},
    "llama3_v4": {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0, "keys": "v4"},
    "llama3_v5": {"rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0, "keys": "v5", "tie_word_embeddings": True},
    "default_v5": {"keys": "v5", "vocab_size": 259},
}


def attention_sources(layers, anchor, num_layers):
    """For each layer whose Q and K it uses. `layers` as in the config: "3-4" or "1-2,4-5"."""
    ranges = []
    for part in layers.split(",") if layers else []:
        first, _, last = part.partition("-")
        ranges.append((int(first), int(last or first)))
    listed = {layer for first, last in ranges for layer in range(first, last + 1)}
    sources = list(range(num_layers))
    for first, last in ranges:
        if anchor == "first":
            source = first
        else:
            source = max(layer for layer in range(first) if layer not in listed)
        for layer in range(first, last + 1):
            sources[layer] = source
    return sources


def tensor_shapes(shape, sources):
    """{name: shape} of a checkpoint; shared layers have no q_proj and no k_proj."""
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    query, kv = (shape[key] * shape["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    tensors = {"model.embed_tokens.weight": [shape["vocab_size"], hidden]}
    for layer, source in enumerate(sources):
        prefix = f"model.layers.{layer}."
        if source == layer:
            tensors[prefix + "self_attn.q_proj.weight"] = [query, hidden]
            tensors[prefix + "self_attn.k_proj.weight"] = [kv, hidden]
        tensors[prefix + "self_attn.v_proj.weight"] = [kv, hidden]
        tensors[prefix + "self_attn.o_proj.weight"] = [hidden, query]
        tensors[prefix + "mlp.gate_proj.weight"] = [ffn, hidden]
        tensors[prefix + "mlp.up_proj.weight"] = [ffn, hidden]
        tensors[prefix + "mlp.down_proj.weight"] = [hidden, ffn]
        tensors[prefix + "input_layernorm.weight"] = [hidden]
        tensors[prefix + "post_attention_layernorm.weight"] = [hidden]
    tensors["model.norm.weight"] = [hidden]
    if not shape["tie_word_embeddings"]:
        tensors["lm_head.weight"] = [shape["vocab_size"], hidden]
    return tensors


def random_tensor(name, size, seed):
    """Large enough that attention is far from uniform; norms around 1. Depends on name and seed alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    noise = torch.randn(size, generator=generator)
    return 1.0 + 0.2 * noise if len(size) == 1 else noise * (1.5 / size[1] ** 0.5 if "proj" in name else 0.5)


def config_json(shape, sharing=None, sources=None, dtype="float32"):
    keys = shape.get("keys", "both")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if sharing:
        config = {"architectures": ["SALlamaForCausalLM"], "model_type": "sa_llama"}
        config["auto_map"] = {
            "AutoConfig": "configuration_sa_llama.SALlamaConfig",
            "AutoModel": "modeling_sa_llama.SALlamaModel",
            "AutoModelForCausalLM": "modeling_sa_llama.SALlamaForCausalLM",
        }
        config["sharing"] = sharing
        config["attention_sources"] = sources
    for key in BASE:
        if key not in ("rope_theta", "rope_scaling"):
            config[key] = shape[key]
    config |= {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
    config |= {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02}
    if keys in ("v4", "both"):
        config |= {"rope_theta": shape["rope_theta"], "rope_scaling": shape["rope_scaling"], "torch_dtype": dtype}
    if keys in ("v5", "both"):
        rope = {"rope_theta": shape["rope_theta"], **(shape["rope_scaling"] or {"rope_type": "default"})}
        config |= {"rope_parameters": rope, "dtype": dtype}
    return config


def write_model(directory, shape_name, layers="", anchor="before", seed=0, dtype=torch.float32, **changes):
    """Writes one directory and returns its config. A layer's tensors are the same with and without sharing."""
    shape = {**BASE, **SHAPES[shape_name], **changes}
    sources = attention_sources(layers, anchor, shape["num_hidden_layers"])
    sharing = {"layers": layers, "anchor": anchor} if layers else None
    config = config_json(shape, sharing, sources, str(dtype).removeprefix("torch."))
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    sizes = tensor_shapes(shape, sources)
    tensors = {name: random_tensor(name, size, seed).to(dtype).contiguous() for name, size in sizes.items()}
    save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
    if sharing:
        for name in ("configuration_sa_llama.py", "modeling_sa_llama.py"):
            shutil.copy(os.path.join(EXPORT_CODE, name), directory)
    return config


def write_architecture(directory, **changes):
    """The file that `satune init` takes; a value of None leaves the key out."""
    keys = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    } | changes
    path = pathlib.Path(directory) / "arch.json"
    path.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))
    return path


def random_batch(vocab_size, lengths, seed, targets_from=0.3):
    """One packed micro-batch as data/batch.h defines it: documents end to end, targets = next token, the
    first `targets_from` of each document (the prompt) and its last token without a target."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocab_size, (sum(lengths),), generator=generator)
    targets = torch.full_like(tokens, -100)
    starts = [0]
    for length in lengths:
        start, end = starts[-1], starts[-1] + length
        first = start + int(length * targets_from)
        targets[first : end - 1] = tokens[first + 1 : end]
        starts.append(end)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": positions,
        "document_starts": torch.tensor(starts, dtype=torch.int64),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gqa")
    parser.add_argument("--sharing", default="", help='shared layers, "3-4" or "1-2,4-5"; default: a plain Llama')
    parser.add_argument("--anchor", choices=["before", "first"], default="before")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_model(arguments.directory, arguments.shape, arguments.sharing, arguments.anchor, arguments.seed)


if __name__ == "__main__":
    main()
