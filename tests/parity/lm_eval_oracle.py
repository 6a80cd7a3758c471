"""lm-eval over local files, in a process of its own: what came back from the model, and the metrics.

Started with lm-eval's folder on PYTHONPATH: lm_eval_oracle.py REQUEST.json OUT.json, where REQUEST is
{"limit": N, "calls": {name: {"model": folder, "shots": N or null, "tasks": {task: {split: file.jsonl}}}}} and every
file holds the documents as the hub's dataset has them.
"""

import json
import pathlib
import sys

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml


def task_config(manager, name, files):
    """lm-eval's own configuration of the task with local files in place of the hub's."""
    config = load_yaml(manager.task_index[name].yaml_path, resolve_func=True)
    config.pop("tag", None)
    return config | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def item(sample):
    """What came of a document: the log-likelihood of each choice or of the page, or the text that was generated.
    transformers drops a space before a text where sentencepiece keeps it, so no prompt may begin so (none of the
    tasks' own does)."""
    answers = [response[0] for response in sample["resps"]]
    if isinstance(answers[0], str):
        return answers[0]
    if isinstance(answers[0], (list, tuple)):
        arguments = sample["arguments"]
        first = next(iter(arguments.values()))["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
        assert not first.startswith(" ")
        return [round(answer[0], 5) for answer in answers]
    return [round(answer, 5) for answer in answers]


def plain_metrics(results):
    return {key: value for key, value in results.items() if isinstance(value, (int, float))}


def ask(model, manager, name, files, shots, limit):
    # 1000 resamplings where lm-eval has no formula for a standard error.
    done = lm_eval.simple_evaluate(
        model=model, tasks=[task_config(manager, name, files)], num_fewshot=shots, limit=limit, log_samples=True,
        bootstrap_iters=1000, task_manager=manager)
    # Every filter of a task has the same samples.
    samples = {sample["doc_id"]: sample for sample in done["samples"][name]}
    return {"metrics": plain_metrics(done["results"][name]), "items": [item(samples[index]) for index in sorted(samples)]}


def main(request_file, out_file):
    request = json.loads(pathlib.Path(request_file).read_text())
    manager = TaskManager()
    models = {folder: HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8)
              for folder in {call["model"] for call in request["calls"].values()}}
    out = {name: {task: ask(models[call["model"]], manager, task, files, call["shots"], request["limit"])
                  for task, files in call["tasks"].items()} for name, call in request["calls"].items()}
    pathlib.Path(out_file).write_text(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
