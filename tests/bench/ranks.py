"""Speed and traffic of 2 data-parallel processes of half the threads each beside one process of all.

    .venv/bin/python tests/bench/ranks.py --program build/release/satune --threads 2

The model and rows of train_speed.py, the same global batch on each side, one turn a stage and another of the single
process before each, so that a machine whose speed drifts drifts under both. Bytes sent per step by a rank stand beside
the least that the stage needs: per micro-step (n - 1)/n of the gradients' bytes, per step as much of the parameters'
(stages 1 and 2; fp32 sums of the gradients at stage 0), per micro-step twice that of the parameters at stage 3. Reports,
never fails.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

from train_speed import ARCH, LENGTH, ROWS, WARM, measured, words


def parameter_count():
    hidden, ffn, vocab = ARCH["hidden_size"], ARCH["intermediate_size"], ARCH["vocab_size"]
    heads = (ARCH["num_attention_heads"] + ARCH["num_key_value_heads"]) * ARCH["head_dim"]
    layer = 2 * hidden * heads + 3 * hidden * ffn + 2 * hidden
    return 2 * vocab * hidden + hidden + ARCH["num_hidden_layers"] * layer


def least_bytes(stage, ranks, micro_steps, width):
    share = parameter_count() * (ranks - 1) / ranks
    gathered = {0: 4, 1: width, 2: width, 3: 2 * width * micro_steps}[stage]
    return share * (width * micro_steps + gathered)


def train(options, folder, name, ranks, stage):
    run, micro_steps = folder / name, options.rows // ranks
    config = folder / f"{name}.json"
    config.write_text(json.dumps({
        "model_name_or_path": str(folder / "model"), "train_file": str(folder / "text.txt"), "val_size": 0,
        "output_dir": str(run), "max_length": LENGTH, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": micro_steps, "max_steps": options.steps, "warmup_steps": 0,
        "learning_rate": 1e-4, "precision": options.precision, "num_threads": options.threads // ranks, "device": "cpu",
        "gradient_checkpointing": False, "zero_stage": stage, "eval_steps": 0, "save_steps": 0, "export_at_end": False}))
    measured([options.program, "train", str(config), "--nproc-per-node", str(ranks)], OMP_WAIT_POLICY="passive")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][WARM:]
    sent = sum(value for key, value in rows[-1].items() if key.startswith("sent_"))
    return statistics.median(row["step_seconds"] for row in rows), rows[-1]["peak_memory_bytes"], sent, micro_steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/release/satune")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="of both processes together")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step, all processes together")
    options = parser.parse_args()
    width = 2 if options.precision == "bf16" else 4
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "arch.json").write_text(json.dumps(ARCH))
        (folder / "text.txt").write_text(words(60000))
        measured([options.program, "init", str(folder / "arch.json"), str(folder / "model"), "--train-tokenizer",
                  str(folder / "text.txt")])
        for stage in range(4):
            alone, alone_peak, _, _ = train(options, folder, f"one-{stage}", 1, stage)
            two, peak, sent, micro_steps = train(options, folder, f"two-{stage}", 2, stage)
            least = least_bytes(stage, 2, micro_steps, width)
            print(f"stage {stage}, {options.precision}: 2 processes at {alone / two:.2f} of the speed of one, "
                  f"{peak / 2**20:.0f} MiB each against {alone_peak / 2**20:.0f}; {sent / 1e6:.1f} MB a step sent, "
                  f"{sent / least:.3f} of the stage's formula")


if __name__ == "__main__":
    main()
