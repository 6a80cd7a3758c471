"""Writes what transformers computes for one text as a reference for `satune diff MODEL --reference DUMP`.

    python dump_reference.py MODEL_DIR --prompt "Once upon a time" --output dump.safetensors
    python dump_reference.py MODEL_DIR --tokens 1,403,407 --gradients --output dump.safetensors

Tensors of the dump, fp32 unless said: tokens [N] int64; embed [N, C]; of each layer i: layers.{i}.q [N, H, D]
and layers.{i}.k [N, K, D] after RoPE (not of shared layers), layers.{i}.v [N, K, D], layers.{i}.attention
[N, H * D] before o_proj, layers.{i}.out [N, C], the residual stream after the layer; final_norm [N, C];
logits [N, V]. With --gradients also loss [], the mean over every token but the first as a target, and
gradient.{parameter}, each in the parameter's shape. Works for plain Llamas and for directories that satune exported, with transformers 4.57 and 5.
"""

import argparse

import torch
import transformers
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer


def record(model):
    """Hooks the model; returns the dictionary that the next forward fills."""
    recorded = {}

    def keep(name, value):
        recorded[name] = value.detach()[0].float().contiguous()

    model.model.embed_tokens.register_forward_hook(lambda _, args, out: keep("embed", out))
    model.model.norm.register_forward_hook(lambda _, args, out: keep("final_norm", out))
    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn

        def value(_, args, out, name=f"layers.{i}.v", dim=attention.head_dim):
            keep(name, out.unflatten(-1, (-1, dim)))

        def before_output(_, args, name=f"layers.{i}.attention"):
            keep(name, args[0])

        def after_layer(_, args, out, name=f"layers.{i}.out"):
            keep(name, out[0] if isinstance(out, tuple) else out)

        attention.v_proj.register_forward_hook(value)
        attention.o_proj.register_forward_pre_hook(before_output)
        layer.register_forward_hook(after_layer)
    record_attention_inputs(keep)
    model.set_attn_implementation("recording")
    if model.config._attn_implementation != "recording":  # transformers only warns
        raise SystemExit(f"error: {type(model).__name__} does not let its attention be recorded")
    return recorded


def record_attention_inputs(keep):
    """Q and K after RoPE are seen by the attention function alone: ours keeps them and calls sdpa's."""

    def recording(module, query, key, *args, **kwargs):
        if hasattr(module, "q_proj"):
            keep(f"layers.{module.layer_idx}.q", query.transpose(1, 2))
            keep(f"layers.{module.layer_idx}.k", key.transpose(1, 2))
        return AttentionInterface()["sdpa"](module, query, key, *args, **kwargs)

    AttentionInterface.register("recording", recording)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face directory")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", help="text, encoded by the directory's tokenizer")
    text.add_argument("--tokens", help="comma-separated ids")
    parser.add_argument("--gradients", action="store_true", help="also the loss and every parameter's gradient")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args(argv)

    options = {"trust_remote_code": True, "local_files_only": True}
    if arguments.tokens:
        tokens = [int(token) for token in arguments.tokens.split(",")]
    else:
        tokens = AutoTokenizer.from_pretrained(arguments.model, **options).encode(arguments.prompt)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, **options).eval()
    dump = record(model)
    with torch.set_grad_enabled(arguments.gradients):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    dump["logits"] = logits.detach().contiguous()
    if arguments.gradients:
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
        loss.backward()
        dump["loss"] = loss.detach()
        dump |= {f"gradient.{name}": tensor.grad.contiguous() for name, tensor in model.named_parameters()}
    dump["tokens"] = torch.tensor(tokens, dtype=torch.int64)
    source = {"format": "pt", "transformers": transformers.__version__, "model": arguments.model}
    save_file({name: value.detach().clone() for name, value in dump.items()}, arguments.output, metadata=source)
    print(f"{arguments.output}: {len(tokens)} tokens, {len(dump)} tensors")


if __name__ == "__main__":
    main()
