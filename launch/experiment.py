"""Dense against Shared Attention on a model trained here: several plans, several seeds, one table.

For each seed: its own data and tokenizer (quickstart_data.py), a dense base from random weights, then the same number
of further steps dense and under every plan. Losses are per target token of held-out records. What is done stays
done: the same command goes on after an interruption.
"""

import argparse
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEYS = {"architecture", "base", "fine_tune", "template", "seeds", "plans", "base_settings", "fine_tune_settings"}


def fail(message):
    sys.exit(f"error: experiment.py: {message}")


def read_experiment(path):
    """The file without its // comments (none of its strings holds two slashes)."""
    try:
        experiment = json.loads(re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if not isinstance(experiment, dict) or experiment.keys() != KEYS:
        fail(f"{path}: expected an object with the keys {', '.join(sorted(KEYS))}")
    seeds, plans = experiment["seeds"], experiment["plans"]
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)):
        fail(f"{path}: seeds: found {seeds!r}, expected whole numbers")
    if not (isinstance(plans, list) and plans and all(isinstance(p, dict) and p.keys() == {"layers", "anchor"} for p in plans)):
        fail(f"{path}: plans: expected objects of layers and anchor")
    return experiment


def plan_name(plan):
    return f"{plan['layers']}-{plan['anchor']}"


class Bench:
    """One seed's folder, and the commands that fill it."""

    def __init__(self, satune, experiment, folder, seed, threads):
        self.satune, self.experiment, self.folder, self.seed, self.threads = satune, experiment, folder, seed, threads

    def call(self, *arguments):
        command = [str(self.satune), *map(str, arguments)]
        print("experiment:", " ".join(command), file=sys.stderr)
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        if run.returncode != 0:
            fail(f"exit code {run.returncode} of: {' '.join(command)}")

    def prepare(self):
        data = self.folder / "data"
        if not (data / "heldout.json").exists():
            script = [sys.executable, ROOT / "launch" / "quickstart_data.py", data, "--seed", str(self.seed)]
            subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
        if not (self.folder / "init" / "config.json").exists():
            self.call("init", self.experiment["architecture"], self.folder / "init", "--train-tokenizer",
                      data / "train.json", "--template", self.experiment["template"], "--seed", self.seed)

    def train(self, name, model, config, settings):
        """To its export; nothing where that is there. An interrupted run is continued by satune itself."""
        if (self.folder / name / "export" / "config.json").exists():
            return
        overrides = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
        self.call("train", config, f"model_name_or_path={model}", f"train_file={self.folder / 'data' / 'train.json'}",
                  f"eval_file={self.folder / 'data' / 'heldout.json'}", f"template={self.experiment['template']}",
                  f"output_dir={self.folder / name}", f"seed={self.seed}", f"num_threads={self.threads}", *overrides)

    def evaluate(self, name, model, *more):
        output = self.folder / f"eval-{name}.json"
        if not output.exists():
            self.call("eval", model, "--task", f"response_loss={self.folder / 'data' / 'heldout.json'}", "--template",
                      self.experiment["template"], "--precision", "fp32", "--output", output, *more)
        return json.loads(output.read_text(encoding="utf-8"))

    def run(self):
        """{name: report}: dense, dense-more, and of each plan NAME-direct and NAME."""
        experiment, base = self.experiment, self.folder / "dense" / "export"
        self.prepare()
        self.train("dense", self.folder / "init", experiment["base"], experiment["base_settings"])
        reports = {"dense": self.evaluate("dense", base)}
        further = experiment["fine_tune_settings"]
        self.train("dense-more", base, experiment["fine_tune"], further)
        reports["dense-more"] = self.evaluate("dense-more", self.folder / "dense-more" / "export")
        for plan in experiment["plans"]:
            name = plan_name(plan)
            reports[f"{name}-direct"] = self.evaluate(
                f"{name}-direct", base, "--sharing", plan["layers"], "--anchor", plan["anchor"])
            self.train(name, base, experiment["fine_tune"],
                       {**further, "sharing.layers": plan["layers"], "sharing.anchor": plan["anchor"]})
            reports[name] = self.evaluate(name, self.folder / name / "export")
        return reports


def mean_and_error(values):
    """Mean and its standard error over seeds; no error from one."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "stderr": error, "n": len(values)}


def loss(report):
    return report["tasks"]["response_loss"]["loss"]


def summarise(experiment, by_seed):
    """Differences are taken within a seed: its base is what differs most between seeds."""
    runs = list(by_seed.values())
    rows = []
    for plan in experiment["plans"]:
        name = plan_name(plan)
        lost = [loss(run[f"{name}-direct"]) - loss(run["dense"]) for run in runs]
        remaining = [loss(run[name]) - loss(run["dense-more"]) for run in runs]
        shared, dense = runs[0][name], runs[0]["dense-more"]
        rows.append({
            **plan,
            "loss": mean_and_error([loss(run[name]) for run in runs]),
            "direct_cost": mean_and_error(lost),
            "cost_after_fine_tuning": mean_and_error(remaining),
            "won_back": mean_and_error([1 - left / cost for left, cost in zip(remaining, lost)]) if min(lost) > 0 else None,
            "parameters_saved": 1 - shared["parameters"] / dense["parameters"],
            "kv_cache_saved": 1 - shared["kv_cache_bytes_per_token"] / dense["kv_cache_bytes_per_token"],
        })
    return {"seeds": list(by_seed), "dense": mean_and_error([loss(run["dense"]) for run in runs]),
            "dense_fine_tuned": mean_and_error([loss(run["dense-more"]) for run in runs]), "plans": rows}


def number(value, digits=4):
    if value is None:
        return "-"
    text = f"{value['mean']:.{digits}f}"
    return text if value["stderr"] is None else f"{text} ± {value['stderr']:.{digits}f}"


def render(summary):
    lines = [["plan", "direct sharing costs", "fine-tuned costs", "won back", "parameters", "KV cache"]]
    for row in summary["plans"]:
        lines.append([f"{row['layers']} {row['anchor']}", number(row["direct_cost"]), number(row["cost_after_fine_tuning"]),
                      number(row["won_back"], 2), f"-{row['parameters_saved']:.1%}", f"-{row['kv_cache_saved']:.1%}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [f"held-out response loss over {len(summary['seeds'])} seeds: dense base {number(summary['dense'])}, "
            f"dense after the same further steps {number(summary['dense_fine_tuned'])}",
            "costs are losses above dense ones of the same seed; ± one standard error of the mean", ""]
    for count, line in enumerate(lines):
        text.append("  ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])]).rstrip())
        if count == 0:
            text.append("  ".join("-" * width for width in widths))
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=pathlib.Path, default=ROOT / "configs" / "experiment.json")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "runs" / "experiment")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count()))
    arguments = parser.parse_args()
    satune = pathlib.Path(os.environ.get("SATUNE_BUILD_DIR", ROOT / "build" / "release")) / "satune"
    if not satune.exists():
        fail(f"found no {satune}, expected the built program (launch/quickstart.sh builds it)")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    experiment = read_experiment(arguments.experiment)
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # Results of another experiment would be taken for those of this one.
    kept = output / "experiment.json"
    text = json.dumps({key: value for key, value in experiment.items() if key not in ("seeds", "plans")}, indent=2) + "\n"
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        fail(f"{kept}: found other settings, expected those of {arguments.experiment} (another --output keeps both)")
    kept.write_text(text, encoding="utf-8")
    by_seed = {}
    for seed in experiment["seeds"]:
        folder = output / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        by_seed[seed] = Bench(satune.resolve(), experiment, folder, seed, arguments.threads).run()
    summary = summarise(experiment, by_seed)
    (output / "table.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(render(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
