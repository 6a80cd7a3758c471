"""An eager Llama with Shared Attention in plain torch: what satune is compared with.

Written for being obviously right. Attention materialises softmax(Q K^T) as [H, T, T]; a shared layer multiplies
the stored probabilities of its anchor with its own values. Everything runs in the dtype asked for, end to end
(float64 really is float64), save the RoPE angles, which are fp32 position x fp32 inv_freq by definition.
Gradients come from autograd. It reads a Hugging Face directory and imports neither satune nor transformers.
"""

import json
import math
import os

import torch
from safetensors import safe_open
from safetensors.torch import load_file


class Config:
    """config.json as transformers v4 or v5 or an sa_llama export write it."""

    def __init__(self, directory):
        with open(os.path.join(directory, "config.json")) as file:
            raw = json.load(file)
        self.num_layers = raw["num_hidden_layers"]
        self.num_heads = raw["num_attention_heads"]
        self.num_kv_heads = raw.get("num_key_value_heads") or self.num_heads
        self.head_dim = raw.get("head_dim") or raw["hidden_size"] // self.num_heads
        self.eps = raw["rms_norm_eps"]
        self.tied = raw.get("tie_word_embeddings", False)
        rope = raw.get("rope_parameters") or {}
        self.rope_theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
        scaling = raw.get("rope_scaling") or rope
        self.llama3 = scaling if scaling.get("rope_type", "default") == "llama3" else None
        self.sources = raw.get("attention_sources") or list(range(self.num_layers))

    def inverse_frequencies(self):
        """fp32 [D / 2]; with rope_type "llama3" long waves are slowed down and middle ones blended."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / self.rope_theta**exponents
        if self.llama3 is None:
            return frequencies
        factor, context = self.llama3["factor"], self.llama3["original_max_position_embeddings"]
        low, high = self.llama3["low_freq_factor"], self.llama3["high_freq_factor"]
        turns = context / (2 * math.pi / frequencies)  # rotations within the original context
        blend = (turns - low) / (high - low)
        slowed = frequencies / factor
        blended = (1 - blend) * slowed + blend * frequencies
        return torch.where(turns < low, slowed, torch.where(turns > high, frequencies, blended))


class Oracle:
    """Model of one directory. `sources` overrides the directory's plan (direct sharing of a dense model)."""

    def __init__(self, directory, dtype=torch.float64, sources=None):
        self.config = Config(directory)
        if sources is not None:
            self.config.sources = sources
        self.dtype = dtype
        loaded = read_tensors(directory)
        for layer, source in enumerate(self.config.sources):
            if source != layer:
                loaded.pop(f"model.layers.{layer}.self_attn.q_proj.weight", None)
                loaded.pop(f"model.layers.{layer}.self_attn.k_proj.weight", None)
        if self.config.tied:
            loaded.pop("lm_head.weight", None)
        self.parameters = {name: value.to(dtype).clone().requires_grad_() for name, value in loaded.items()}

    def weight(self, layer, name):
        return self.parameters[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x, weight):
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps))

    def rotate(self, x, positions):
        """x [T, heads, D], halves layout."""
        angles = (positions.float()[:, None] * self.config.inverse_frequencies()[None]).to(self.dtype)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        low, high = x.chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    def probabilities(self, layer, x, positions, allowed):
        """softmax(Q K^T / sqrt(D)) [H, T, T] of a layer that computes its own; allowed [T, T] is the mask."""
        config = self.config
        query = (x @ self.weight(layer, "self_attn.q_proj").T).view(len(x), config.num_heads, config.head_dim)
        key = (x @ self.weight(layer, "self_attn.k_proj").T).view(len(x), config.num_kv_heads, config.head_dim)
        query, key = self.rotate(query, positions), self.rotate(key, positions)
        key = key.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
        scores = torch.einsum("thd,shd->hts", query, key) / math.sqrt(config.head_dim)
        return scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)

    def attend(self, layer, x, probabilities):
        config = self.config
        value = (x @ self.weight(layer, "self_attn.v_proj").T).view(len(x), config.num_kv_heads, config.head_dim)
        value = value.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1)
        mixed = torch.einsum("hts,shd->thd", probabilities, value).flatten(1)
        return mixed @ self.weight(layer, "self_attn.o_proj").T

    def mlp(self, layer, x):
        gate = torch.nn.functional.silu(x @ self.weight(layer, "mlp.gate_proj").T)
        return (gate * (x @ self.weight(layer, "mlp.up_proj").T)) @ self.weight(layer, "mlp.down_proj").T

    def forward(self, tokens, positions, allowed):
        """Logits [T, V]."""
        x = self.parameters["model.embed_tokens.weight"][tokens]
        stored = {}
        for layer, source in enumerate(self.config.sources):
            normed = self.norm(x, self.weight(layer, "input_layernorm"))
            if source == layer:
                stored[layer] = self.probabilities(layer, normed, positions, allowed)
            x = x + self.attend(layer, normed, stored[source])
            x = x + self.mlp(layer, self.norm(x, self.weight(layer, "post_attention_layernorm")))
        x = self.norm(x, self.parameters["model.norm.weight"])
        head = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        return x @ self.parameters[head].T

    def logits(self, batch, block_diagonal=False):
        """Logits [N, V] of a packed batch (tokens, positions, document_starts): every document by itself, or
        all at once under a mask that keeps documents apart. The two must agree."""
        tokens, positions = batch["tokens"], batch["positions"]
        starts = batch["document_starts"].tolist()
        if block_diagonal:
            document = torch.repeat_interleave(torch.arange(len(starts) - 1), torch.tensor(starts).diff())
            allowed = torch.ones(len(tokens), len(tokens)).tril().bool() & (document[:, None] == document[None])
            return self.forward(tokens, positions, allowed)
        spans = [slice(start, end) for start, end in zip(starts, starts[1:]) if end > start]
        causal = [torch.ones(span.stop - span.start, span.stop - span.start).tril().bool() for span in spans]
        return torch.cat([self.forward(tokens[s], positions[s], mask) for s, mask in zip(spans, causal)])

    def loss(self, batches):
        """Mean of -log p(target) over all valid targets of the batches together."""
        total = sum((batch["targets"] != -100).sum().item() for batch in batches)
        return sum(loss_sum(self.logits(batch), batch["targets"]) for batch in batches) / max(total, 1)

    def gradients(self, batches):
        """(loss, {name: gradient})."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = self.loss(batches)
        loss.backward()
        return loss.detach(), {name: parameter.grad.clone() for name, parameter in self.parameters.items()}


def read_tensors(directory):
    """All tensors of model.safetensors or of the shards of its index."""
    index = os.path.join(directory, "model.safetensors.index.json")
    if not os.path.exists(index):
        return load_file(os.path.join(directory, "model.safetensors"))
    with open(index) as file:
        weight_map = json.load(file)["weight_map"]
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        with safe_open(os.path.join(directory, shard), "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def loss_sum(logits, targets):
    valid = targets != -100
    return torch.nn.functional.cross_entropy(logits[valid], targets[valid], reduction="sum")


def adamw(named_parameters, lr, weight_decay, decay_norms=False):
    """torch's AdamW with the usual two groups: vectors (norms) are not decayed."""
    parameters = list(named_parameters.values())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1 or decay_norms], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1 and not decay_norms], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, foreach=False)


def trajectory(model, steps, lr, weight_decay, max_grad_norm, decay_norms=False):
    """Trains on `steps`, a list of lists of batches (one global batch a step). Returns losses and norms before
    clipping; the model holds the final parameters."""
    optimizer = adamw(model.parameters, lr, weight_decay, decay_norms)
    losses, norms = [], []
    for batches in steps:
        optimizer.zero_grad()
        loss = model.loss(batches)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters.values(), max_grad_norm).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def relative_l2(found, expected):
    """||found - expected|| / ||expected||, in float64; 0 when both are zero."""
    found, expected = found.double(), expected.double()
    difference = (found - expected).norm().item()
    return difference / expected.norm().item() if difference > 0 else 0.0
