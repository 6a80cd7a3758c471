"""The quickstart's one table, from what satune wrote down: four eval reports and three training logs."""

import argparse
import json
import pathlib
import statistics
import sys

# (column, folder of the training run or None, title)
COLUMNS = [
    ("dense", "dense", "dense base"),
    ("direct", None, "SA, untrained"),
    ("sa", "sa", "SA, fine-tuned"),
    ("dense_more", "dense-more", "dense, fine-tuned"),
]


def training(run):
    """Median speed, peak memory, steps and seconds of a training run; nothing for a model without one."""
    if run is None:
        return {}
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {
        "steps": rows[-1]["step"],
        "train_tokens_per_s": statistics.median(row["tokens_per_s"] for row in rows),
        "train_peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "train_seconds": sum(row["step_seconds"] for row in rows),
    }


def by_family(tasks, families):
    """Tasks of one name are told apart by their file, except the first, which has the bare name."""
    return {
        family: tasks["exact_match" if number == 0 else f"exact_match:heldout-{family}.json"]
        for number, family in enumerate(families)
    }


def column(report, run, families):
    tasks = report["tasks"]
    matches = by_family(tasks, families)
    answered = sum(task["n"] for task in matches.values())
    right = sum(task["exact_match"] * task["n"] for task in matches.values())
    return {
        "response_loss": tasks["response_loss"]["loss"],
        "exact_match": right / answered,
        "exact_match_by_family": {family: task["exact_match"] for family, task in matches.items()},
        "eval_tokens_per_s": report["tokens_per_s"],
        "eval_peak_memory_bytes": report["peak_memory_bytes"],
        "parameters": report["parameters"],
        "kv_cache_bytes_per_token": report["kv_cache_bytes_per_token"],
        **training(run),
    }


def rows(table, families):
    def line(title, text):
        return [title] + [text(table[name]) for name, _, _ in COLUMNS]

    def optional(key, text):
        return lambda c: text(c[key]) if key in c else "-"

    mebibytes = lambda value: f"{value / 2**20:,.0f} MiB"
    yield line("held-out response loss", lambda c: f"{c['response_loss']:.4f}")
    yield line("exact match", lambda c: f"{c['exact_match']:.1%}")
    for family in families:
        yield line(f"  {family}", lambda c, f=family: f"{c['exact_match_by_family'][f]:.1%}")
    yield line("training steps", optional("steps", "{:,}".format))
    yield line("training tokens/s", optional("train_tokens_per_s", "{:,.0f}".format))
    yield line("training peak memory", optional("train_peak_memory_bytes", mebibytes))
    yield line("training seconds", optional("train_seconds", "{:,.0f}".format))
    yield line("evaluation tokens/s", lambda c: f"{c['eval_tokens_per_s']:,.0f}")
    yield line("evaluation peak memory", lambda c: mebibytes(c["eval_peak_memory_bytes"]))
    yield line("parameters", lambda c: f"{c['parameters']:,}")
    yield line("KV-cache bytes/token", lambda c: f"{c['kv_cache_bytes_per_token']:,}")


def render(table):
    families = list(table["dense"]["exact_match_by_family"])
    lines = [[""] + [title for _, _, title in COLUMNS], *rows(table, families)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = []
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        text.append("  ".join(cells).rstrip())
        if number == 0:
            text.append("  ".join("-" * width for width in widths))
    return "\n".join(text)


def won_back(table):
    """Share of the response loss lost by direct sharing that fine-tuning with SA wins back."""
    lost = table["direct"]["response_loss"] - table["dense"]["response_loss"]
    return (table["direct"]["response_loss"] - table["sa"]["response_loss"]) / lost if lost > 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="the quickstart's folder")
    folder = parser.parse_args().folder
    families = sorted(path.stem.removeprefix("heldout-") for path in folder.glob("data/heldout-*.json"))
    table = {}
    for name, run, _ in COLUMNS:
        report = json.loads((folder / f"eval-{name}.json").read_text(encoding="utf-8"))
        table[name] = column(report, folder / run if run else None, families)
    (folder / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(render(table))
    share = won_back(table)
    print()
    if share is None:
        print("Sharing without training cost nothing here.")
    else:
        print(f"Of the loss that sharing without training cost, fine-tuning with SA won back {share:.0%}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
