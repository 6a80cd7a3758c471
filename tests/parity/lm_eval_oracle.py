"""lm-eval over local files, in a process of its own: prints what it asked the model, what came back and the metrics.

Started with lm-eval's folder on PYTHONPATH: lm_eval_oracle.py REQUEST.json OUT.json, where REQUEST is
{"model": folder, "limit": N, "shots": N or null, "tasks": {name: {split: file.jsonl}}} and every file holds the
documents as the hub's dataset has them.
"""

import json
import pathlib
import sys
import time

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml


def task_config(manager, name, files):
    """lm-eval's own configuration of the task with local files in place of the hub's."""
    config = load_yaml(manager.task_index[name].yaml_path, resolve_func=True)
    config.pop("tag", None)
    return config | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def plain_metrics(results):
    return {key: value for key, value in results.items() if isinstance(value, (int, float))}


def main(request_file, out_file):
    request = json.loads(pathlib.Path(request_file).read_text())
    manager = TaskManager()
    model = HFLM(pretrained=request["model"], device="cpu", dtype="float32", batch_size=request.get("batch_size", 8))
    out = {}
    for name, files in request["tasks"].items():
        start = time.monotonic()
        # Metrics and samples; 1000 resamplings where lm-eval has no formula for a standard error.
        done = lm_eval.simple_evaluate(
            model=model, tasks=[task_config(manager, name, files)], num_fewshot=request["shots"],
            limit=request["limit"], log_samples=True, bootstrap_iters=1000, task_manager=manager)
        samples = {}
        for sample in done["samples"][name]:
            arguments = [list(values.values()) for values in sample["arguments"].values()] \
                if isinstance(sample["arguments"], dict) else sample["arguments"]
            samples.setdefault(sample["doc_id"], {})[sample["filter"]] = {
                "arguments": arguments, "responses": sample["resps"], "filtered": sample["filtered_resps"],
                "target": sample["target"]}
        out[name] = {
            "metrics": plain_metrics(done["results"][name]), "seconds": time.monotonic() - start,
            "samples": [samples[index] for index in sorted(samples)],
        }
    pathlib.Path(out_file).write_text(json.dumps(out, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
