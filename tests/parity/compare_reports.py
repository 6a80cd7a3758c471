"""Calls satune compare, and writes reports and item files as satune eval does."""

import json
import subprocess


def compare(program, *arguments, code=0):
    done = subprocess.run([program, "compare", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def rows(done):
    return {row["metric"]: row for row in json.loads(done.stdout)["comparisons"][0]["metrics"]}


def write_report(path, tasks, items=None, fingerprints=None, sharing="", stale=None, **measurements):
    """`items`: {task: [result, ...]}; `stale`: those of an earlier run on other data, left in the file."""
    if items is None and fingerprints:
        measurements["fingerprints"] = fingerprints
    report = {"model": path.stem, "tasks": tasks, "seconds": 2.0, "sharing": sharing, "anchor": "before" if sharing else "",
              **measurements}
    if items is not None:
        file = path.with_suffix(".items.jsonl")
        with open(file, "w") as out:
            out.write(json.dumps({"satune_items": 1, "model": "m"}) + "\n")
            for task, results, data in [(task, results, "older") for task, results in (stale or {}).items()] + [
                    (task, results, (fingerprints or {}).get(task, "same")) for task, results in items.items()]:
                run = f"{task} @ {sharing} before" if sharing else task
                for item, result in enumerate(results):
                    out.write(json.dumps({"run": run, "task": data, "item": item, "tokens": 5, "result": result}) + "\n")
        report["items"] = file.name
        if stale:
            report["fingerprints"] = {task: {"items": (fingerprints or {}).get(task, "same")} for task in items}
    path.write_text(json.dumps(report))
    return path
