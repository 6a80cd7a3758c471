"""Speed and traffic of 2 data-parallel processes of half the threads each beside one process of all.

    .venv/bin/python tests/bench/ranks.py --program build/release/satune --threads 2

The model and rows of train_speed.py, the same global batch on each side. A run of the single process stands before and
after that of each stage, and the stage is held against the two beside it, so that a machine whose speed drifts drifts
under both. Bytes sent per step by a rank stand beside the formula of the stage, with n = 2: per micro-step (n - 1)/n
of the gradients' bytes, and (n - 1)/n of the parameters' per step for stages 0 to 2, twice that per micro-step for
stage 3. Reports, never fails.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import tempfile

from train_speed import ARCH, LENGTH, ROWS, WARM, measured, words


def parameter_count():
    hidden, ffn, vocab = ARCH["hidden_size"], ARCH["intermediate_size"], ARCH["vocab_size"]
    heads = (ARCH["num_attention_heads"] + ARCH["num_key_value_heads"]) * ARCH["head_dim"]
    layer = 2 * hidden * heads + 3 * hidden * ffn + 2 * hidden
    return 2 * vocab * hidden + hidden + ARCH["num_hidden_layers"] * layer


def formula_bytes(stage, ranks, micro_steps, width):
    share = parameter_count() * (ranks - 1) / ranks
    return share * width * (micro_steps + (2 * micro_steps if stage == 3 else 1))


def train(options, folder, name, ranks, stage):
    """Seconds of the steps that count, bytes sent a step, peak bytes, micro-steps a rank."""
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
    shutil.rmtree(run)
    sent = sum(value for key, value in rows[-1].items() if key.startswith("sent_"))
    return [row["step_seconds"] for row in rows], sent, rows[-1]["peak_memory_bytes"], micro_steps


def report(options, stage, alone, two):
    """A row of the table out of each side's runs."""
    def seconds(runs):
        return statistics.median(second for run in runs for second in run[0])

    _, sent, _, micro_steps = two[0]
    formula = formula_bytes(stage, 2, micro_steps, 2 if options.precision == "bf16" else 4)
    peaks = [max(run[2] for run in runs) / 2**20 for runs in (two, alone)]
    print(f"| {stage} | {seconds(alone):.2f} s | {seconds(two):.2f} s | {seconds(alone) / seconds(two):.2f} "
          f"| {peaks[0]:.0f} against {peaks[1]:.0f} MiB | {sent / 1e6:.1f} MB | {sent / formula:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/release/satune")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="of both processes together")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=2, help="through all stages")
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step, all processes together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "arch.json").write_text(json.dumps(ARCH))
        (folder / "text.txt").write_text(words(60000))
        measured([options.program, "init", str(folder / "arch.json"), str(folder / "model"), "--train-tokenizer",
                  str(folder / "text.txt")])
        alone, two = [[] for _ in range(4)], [[] for _ in range(4)]
        before = train(options, folder, "one", 1, 0)
        for turn in range(options.turns):
            for stage in range(4):
                two[stage].append(train(options, folder, "two", 2, stage))
                after = train(options, folder, "one", 1, 0)
                alone[stage] += [before, after]
                before = after
    print(f"{options.precision}, {options.threads} threads, {options.rows} x {LENGTH} tokens a step\n\n"
          "| stage | one process | two processes | speed ratio | peak memory of a process | sent a step | of the formula |\n"
          "|---|---|---|---|---|---|---|")
    for stage in range(4):
        report(options, stage, alone[stage], two[stage])


if __name__ == "__main__":
    main()
