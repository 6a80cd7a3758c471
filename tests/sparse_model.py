"""Models of true shapes that occupy no disk: for dry runs, which read headers and no weights."""

import json
import shutil
import struct


def write_sparse_model(directory, config, tokenizer):
    """True-shape bf16 shards whose data are holes: 16 GB that occupy nothing."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // heads
    shards = [{"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden],
               "lm_head.weight": [config["vocab_size"], hidden]}]
    for i in range(config["num_hidden_layers"]):
        if i % 8 == 0:
            shards.append({})
        layer = f"model.layers.{i}."
        shards[-1] |= {
            layer + "self_attn.q_proj.weight": [heads * head_dim, hidden],
            layer + "self_attn.k_proj.weight": [kv_heads * head_dim, hidden],
            layer + "self_attn.v_proj.weight": [kv_heads * head_dim, hidden],
            layer + "self_attn.o_proj.weight": [hidden, heads * head_dim],
            layer + "mlp.gate_proj.weight": [ffn, hidden],
            layer + "mlp.up_proj.weight": [ffn, hidden],
            layer + "mlp.down_proj.weight": [hidden, ffn],
            layer + "input_layernorm.weight": [hidden],
            layer + "post_attention_layernorm.weight": [hidden],
        }
    weight_map, total = {}, 0
    for number, shapes in enumerate(shards, 1):
        name, header, offset = f"model-{number:05}-of-{len(shards):05}.safetensors", {}, 0
        for tensor, shape in shapes.items():
            size = 2
            for dimension in shape:
                size *= dimension
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            weight_map[tensor] = name
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(directory / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in ("tokenizer.model", "tokenizer_config.json"):
        if (tokenizer / file).exists():
            shutil.copy(tokenizer / file, directory)
