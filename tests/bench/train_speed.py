"""Training speed and peak memory of satune beside a transformers + torch loop: the same shape, the same batch.

    .venv/bin/python tests/bench/train_speed.py --program build/release/satune --precision fp32 --threads 2

19M parameters, 4 rows of 512 tokens a step, every token a target, AdamW, no clipping differences. Each side is
one process; the first steps are left out; the median step counts. The two take turns, so that a machine whose
speed drifts drifts under both. Reports, never fails.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

ARCH = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024,
    "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "dtype": "float32",
}
ROWS, LENGTH, WARM = 4, 512, 3


def measured(command, **environment):
    """Runs a command; its output and its peak resident memory in bytes."""
    done = subprocess.run(["/usr/bin/env", "python3", "-c", (
        "import resource,subprocess,sys\n"
        "rc=subprocess.run(sys.argv[1:],stdout=sys.stderr).returncode\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024)\nsys.exit(rc)"), *command],
        env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stderr, int(done.stdout)


def training_steps(model, optimizer, steps, precision, device="cpu"):
    """The loop people write: autocast for 16 bits, clipping, torch's AdamW. `steps` gives each step's micro-batches of
    token ids; yields its seconds."""
    import time

    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for batches in steps:
        wait()
        start = time.perf_counter()
        for tokens in batches:
            with torch.autocast(device, half, enabled=half is not None):
                loss = model(input_ids=tokens, labels=tokens).loss
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        yield time.perf_counter() - start


def peer(model, precision, steps, threads):
    """transformers' model in fp32 out of a directory."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    model = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    batches = ([torch.randint(0, ARCH["vocab_size"], (ROWS, LENGTH), generator=generator)] for _ in range(steps))
    for step, seconds in enumerate(training_steps(model, optimizer, batches, precision)):
        if step >= WARM:
            print(f"step_seconds {seconds}", file=sys.stderr)


def words(count):
    draw = random.Random(0)
    syllables = [a + b + c for a in "bcdfghklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    return " ".join("".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(count))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/release/satune")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--checkpointing", choices=["false", "selective", "true"], default="false",
                        help="gradient_checkpointing of satune's side")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options.peer, options.precision, options.steps, options.threads)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "arch.json").write_text(json.dumps(ARCH))
        (folder / "text.txt").write_text(words(60000))
        model = folder / "model"
        measured([options.program, "init", str(folder / "arch.json"), str(model), "--train-tokenizer",
                  str(folder / "text.txt")])
        config = folder / "config.json"
        ours, theirs, our_peak, their_peak = [], [], 0, 0
        for turn in range(options.turns):
            run = folder / f"run{turn}"
            config.write_text(json.dumps({
                "model_name_or_path": str(model), "train_file": str(folder / "text.txt"), "val_size": 0,
                "output_dir": str(run), "max_length": LENGTH, "per_device_train_batch_size": ROWS,
                "gradient_accumulation_steps": 1, "max_steps": options.steps, "warmup_steps": 0,
                "learning_rate": 1e-4, "precision": options.precision, "num_threads": options.threads,
                "gradient_checkpointing": {"true": True, "false": False}.get(options.checkpointing, options.checkpointing), "eval_steps": 0, "save_steps": 0,
                "export_at_end": False}))
            _, peak = measured([options.program, "train", str(config)], OMP_NUM_THREADS=str(options.threads))
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            ours += [row["step_seconds"] for row in rows if "step_seconds" in row][WARM:]
            our_peak = max(our_peak, peak)
            out, peak = measured([sys.executable, __file__, "--peer", str(model), "--precision",
                                  options.precision, "--steps", str(options.steps), "--threads",
                                  str(options.threads)], OMP_NUM_THREADS=str(options.threads))
            theirs += [float(line.split()[1]) for line in out.splitlines() if line.startswith("step_seconds")]
            their_peak = max(their_peak, peak)
    a, b = statistics.median(ours), statistics.median(theirs)
    tokens = ROWS * LENGTH
    print(f"{options.precision}, {options.threads} threads, median step of {len(ours)}: satune {tokens / a:.0f} "
          f"tokens/s, transformers {tokens / b:.0f} tokens/s, ratio {b / a:.2f}; peak memory "
          f"{our_peak / 2**20:.0f} MiB against {their_peak / 2**20:.0f} MiB, ratio {our_peak / their_peak:.2f}")


if __name__ == "__main__":
    main()
