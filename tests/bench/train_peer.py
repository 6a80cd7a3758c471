"""A training step of transformers + PyTorch at its best settings, at the shapes of `satune bench`, with its JSON keys.

    .venv/bin/python tests/bench/train_peer.py configs/arch-llama3.2-1b.json --layers 2 --sequence-length 512 \\
        --precision fp32 --program build/release/satune

Best settings: the model compiled where a compiler is found, fused AdamW, scaled-dot-product attention (cuDNN's or flash on
a card), bf16 weights by autocast over fp32 ones. Random weights, random tokens, every token a target, clipping at 1. With
--program the two take turns in one run, so that a machine whose speed drifts drifts under both, and the ratio is printed.
Reports, never fails.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

from train_speed import training_steps

PASSED_ON = ("sequence_length", "micro_batch", "gradient_accumulation_steps", "layers", "steps", "warm_up")


def model_of(options):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = pathlib.Path(options.architecture).read_text()
    keys = json.loads("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//")))
    keys = {key: value for key, value in keys.items() if key not in ("model_type", "architectures", "dtype", "torch_dtype")}
    if options.layers:
        keys["num_hidden_layers"] = options.layers
    config = LlamaConfig(**keys, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(torch.float32).to(options.device)
    model.train()
    if options.gradient_checkpointing == "true":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def compiled(model, options):
    """(model, whether it is compiled): on the CPU that takes a C++ compiler."""
    import torch

    if options.compile == "false" or (options.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++"))):
        return model, False
    return torch.compile(model), True


def peer(options):
    """One turn in a process of its own."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = model_of(options)
    step_model, is_compiled = compiled(model, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    on_card = options.device != "cpu"
    rows, length, micro_steps = options.micro_batch, options.sequence_length, options.gradient_accumulation_steps
    batches = list(torch.randint(0, model.config.vocab_size, (micro_steps, rows, length)).to(options.device))
    steps = [batches] * (options.warm_up + options.steps)
    seconds = list(training_steps(step_model, optimizer, steps, options.precision, options.device))[options.warm_up:]
    if on_card:
        peak = torch.cuda.max_memory_allocated()
    else:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\n" + json.dumps({"seconds": seconds, "peak": peak, "compiled": is_compiled, "torch": torch.__version__,
                             "parameters": sum(parameter.numel() for parameter in model.parameters())}))


def last_json(command):
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        sys.exit(f"{command[0]}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def flags(options, names):
    return [word for name in names if getattr(options, name) is not None
            for word in ("--" + name.replace("_", "-"), str(getattr(options, name)))]


def ours(options):
    threads = [f"num_threads={options.threads}"] if options.threads else []
    return json.loads(last_json([
        options.program, "bench", options.architecture, *flags(options, (*PASSED_ON, "precision", "gradient_checkpointing")),
        "--device", "cpu" if options.device == "cpu" else "cuda", "--json", *threads,
        # The peer's attention adds as it goes, too.
        "deterministic=false"]))


def percentile(values, share):
    values = sorted(values)
    place = share * (len(values) - 1)
    low = int(place)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)


def report(options, turns, own):
    """The keys of `satune bench`; FLOPs and peak are those that it told, where it ran."""
    seconds = [second for turn in turns for second in turn["seconds"]]
    median = statistics.median(seconds)
    tokens = options.micro_batch * options.gradient_accumulation_steps * options.sequence_length
    run = {"name": "transformers", "sharing": "", "parameters": turns[0]["parameters"], "steps": len(seconds),
           "step_seconds": {"median": median, "p10": percentile(seconds, 0.1), "p90": percentile(seconds, 0.9),
                            "all": seconds},
           "tokens_per_s": tokens / median, "memory": {"peak_bytes": max(turn["peak"] for turn in turns)},
           "compiled": turns[0]["compiled"], "torch": turns[0]["torch"]}
    result = {"kind": "training", "model": options.architecture, "cut_to_layers": options.layers,
              "precision": options.precision, "place": {"device": options.device, "threads": options.threads, "world_size": 1},
              **{name: getattr(options, name) for name in PASSED_ON if name not in ("layers", "steps")},
              "gradient_checkpointing": options.gradient_checkpointing, "turns": options.turns, "runs": [run]}
    if own:
        all_own = [second for one in own for second in one["runs"][0]["step_seconds"]["all"]]
        first = own[0]["runs"][0]
        peak = max(one["runs"][0]["peak_flops"] for one in own)
        run |= {"flops_per_token": first["flops_per_token"], "peak_flops": peak,
                "mfu": first["flops_per_token"] * run["tokens_per_s"] / peak}
        mine = tokens / statistics.median(all_own)
        result["satune"] = own[-1]["runs"][0] | {"tokens_per_s": mine}
        result["satune_speed_ratio"] = mine / run["tokens_per_s"]
        result["satune_memory_ratio"] = (max(one["runs"][0]["memory"]["peak_bytes"] for one in own)
                                         / run["memory"]["peak_bytes"])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", help="JSON with the keys of a Llama's config.json")
    parser.add_argument("--program", help="satune, to take turns with")
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--precision", choices=["bf16", "fp32", "fp16"], default="bf16")
    parser.add_argument("--gradient-checkpointing", choices=["true", "false"], default="true")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", choices=["auto", "false"], default="auto")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options)
    command = [sys.executable, __file__, options.architecture, "--peer", "--device", options.device, "--compile",
               options.compile, *flags(options, (*PASSED_ON, "precision", "gradient_checkpointing", "threads"))]
    turns, own = [], []
    for _ in range(options.turns):
        if options.program:
            own.append(ours(options))
        turns.append(json.loads(last_json(command).splitlines()[-1]))
    print(json.dumps(report(options, turns, own), indent=2))


if __name__ == "__main__":
    main()
