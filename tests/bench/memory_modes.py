"""Loss curves of the optimizer's memory modes beside fp32: a real small model, the same batches.

    .venv/bin/python tests/bench/memory_modes.py --program build/release/satune --model DIR --data FILE.json

Each mode trains `--steps` steps from each seed; the mean of the last 50 losses counts, relative to that of the fp32 run
of the same seed. Also the largest distance of two curves, each smoothed over 20 steps. Reports, never fails.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

LAST, WINDOW = 50, 20
SETTINGS = {
    "template": "alpaca", "max_length": 256, "packing": True, "val_size": 0, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "warmup_steps": 10, "eval_steps": 0, "save_steps": 0, "export_at_end": False,
    "gradient_checkpointing": False, "save_only_model": True, "logging_steps": 1000,
}
MODES = {
    "fp32": {"precision": "fp32"},
    "bf16, fp32 masters": {},
    "split masters": {"master_weights": "split"},
    "bf16 moments": {"optimizer_moments": "bf16"},
    "8-bit moments": {"optimizer_moments": "8bit"},
    "fp8": {"fp8": True},
    "no masters": {"master_weights": "none"},
    "no masters, bf16 moments": {"master_weights": "none", "optimizer_moments": "bf16"},
    "no masters, 8-bit moments": {"master_weights": "none", "optimizer_moments": "8bit"},
}


def losses(options, folder, seed, changes):
    config = folder / "config.json"
    config.write_text(json.dumps(SETTINGS | {
        "model_name_or_path": options.model, "train_file": options.data, "output_dir": str(folder / "run"),
        "max_steps": options.steps, "learning_rate": options.learning_rate, "precision": "bf16", "seed": seed,
        "num_threads": options.threads} | changes))
    done = subprocess.run([options.program, "train", str(config)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def smoothed(values):
    return [statistics.fmean(values[i:i + WINDOW]) for i in range(len(values) - WINDOW + 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/release/satune")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    options = parser.parse_args()
    print(f"{'mode':<28}{'seed':>6}{'last ' + str(LAST):>12}{'of fp32':>12}{'curve':>12}")
    for seed in options.seeds:
        reference = None
        for mode in options.modes:
            with tempfile.TemporaryDirectory() as folder:
                curve = losses(options, pathlib.Path(folder), seed, MODES[mode])
            reference = reference or curve
            end, start = statistics.fmean(curve[-LAST:]), statistics.fmean(reference[-LAST:])
            apart = max(abs(a / b - 1) for a, b in zip(smoothed(curve), smoothed(reference)))
            print(f"{mode:<28}{seed:>6}{end:>12.4f}{100 * (end / start - 1):>+11.3f}%{100 * apart:>11.3f}%", flush=True)


if __name__ == "__main__":
    main()
