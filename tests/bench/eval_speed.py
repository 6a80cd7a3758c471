"""Questions a second of `satune eval` beside lm-eval 0.4.13: the same model, the same files, the same log-likelihoods.

    SATUNE_LM_EVAL=.venv/lm-eval .venv/bin/python tests/bench/eval_speed.py --program build/release/satune --threads 2

19M parameters, made-up questions: HellaSwag's shape (4 endings), MMLU's with 5 examples (4 letters) and GSM8K's with 5
examples (64 tokens of answer at most, or --answer). fp32; lm-eval in batches of 8, its start and the loading of its model left
out, satune's counted. The two take turns, so that a machine whose speed drifts drifts under both; the median counts.
Reports, never fails.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

from train_speed import ARCH, words

HERE = pathlib.Path(__file__).resolve().parent
PARITY = HERE.parent / "parity"
FOLDER = pathlib.Path(os.environ.get("SATUNE_LM_EVAL", HERE.parents[1] / ".venv" / "lm-eval"))
SHOTS = {"hellaswag": 0, "mmlu": 5, "gsm8k": 5}


def write_lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


class Text:
    def __init__(self):
        self.all, self.draw = words(20000).split(), random.Random(1)

    def of(self, low, high):
        return " ".join(self.draw.choices(self.all, k=self.draw.randint(low, high)))


def write_questions(folder, count):
    """{task: (our path, lm-eval's task, its files)}"""
    text, out = Text(), {}
    documents = [{"activity_label": text.of(2, 2), "ctx_a": text.of(15, 50), "ctx_b": text.of(1, 3), "label": i % 4,
                  "endings": [text.of(6, 20) for _ in range(4)]} for i in range(count)]
    path = write_lines(folder / "hellaswag_val.jsonl", documents)
    out["hellaswag"] = (path, "hellaswag", {"validation": path, "train": path})

    files = {}
    for split, rows in (("test", count), ("dev", 5)):
        (folder / "mmlu" / split).mkdir(parents=True)
        table = [[text.of(10, 40), *(text.of(2, 8) for _ in range(4)), "ABCD"[i % 4]] for i in range(rows)]
        with open(folder / "mmlu" / split / f"anatomy_{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)
        files[split] = write_lines(folder / f"mmlu_{split}.jsonl", [
            {"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in table])
    out["mmlu"] = (str(folder / "mmlu"), "mmlu_anatomy", files)

    (folder / "gsm8k").mkdir()
    files = {split: write_lines(folder / "gsm8k" / f"{split}.jsonl", [
        {"question": text.of(15, 30), "answer": f"{text.of(10, 20)}\n#### {i}"} for i in range(rows)])
        for split, rows in (("test", max(4, count // 10)), ("train", 50))}
    out["gsm8k"] = (str(folder / "gsm8k"), "gsm8k", files)
    return out


def peer(request):
    """One process of lm-eval: the seconds of each task, on the last line."""
    import lm_eval_oracle as oracle
    import torch

    torch.set_num_threads(request["threads"])
    manager = oracle.TaskManager()
    model = oracle.HFLM(pretrained=request["model"], device="cpu", dtype="float32", batch_size=8)
    seconds = {}
    for task, (_, name, files) in request["questions"].items():
        config = oracle.task_config(manager, name, files)
        if task == "gsm8k":
            config["generation_kwargs"] = config["generation_kwargs"] | {"max_gen_toks": request["answer"]}
        start = time.monotonic()
        oracle.lm_eval.simple_evaluate(model=model, tasks=[config], num_fewshot=SHOTS[task], log_samples=True,
                                       bootstrap_iters=0, task_manager=manager)
        seconds[task] = time.monotonic() - start
    print("\n" + json.dumps(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/release/satune")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(SHOTS), help="those to measure, by commas")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer of gsm8k (lm-eval's own limit: 256)")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(json.loads(options.peer))
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    offline = {"PYTHONPATH": f"{FOLDER}:{PARITY}", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def call(*command, **environment):
        done = subprocess.run([str(part) for part in command], env=os.environ | threads | environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command[0]}: exit {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "arch.json").write_text(json.dumps(ARCH | {"max_position_embeddings": 2048}))
        (folder / "text.txt").write_text(words(60000))
        model = folder / "model"
        call(options.program, "init", folder / "arch.json", model, "--train-tokenizer", folder / "text.txt")
        questions = {task: files for task, files in write_questions(folder, options.questions).items()
                     if task in options.tasks.split(",")}
        answer = options.answer
        (folder / "answers.json").write_text(json.dumps({
            "data": "gsm8k/test.jsonl", "examples": "gsm8k/train.jsonl", "num_fewshot": SHOTS["gsm8k"],
            "prompt": "Question: {question}\nAnswer:", "target": "{answer}", "stop": ["Question:", "</s>", "<|im_end|>"],
            "max_new_tokens": answer}))
        request = json.dumps({"model": str(model), "threads": options.threads, "questions": questions, "answer": answer})
        ours, theirs = {task: [] for task in questions}, {task: [] for task in questions}
        for _ in range(options.turns):
            for task, (path, _, _) in questions.items():
                wanted = folder / "answers.json" if task == "gsm8k" else f"{task}={path}"
                start = time.monotonic()
                call(options.program, "eval", model, "--task", wanted, "--num-fewshot", SHOTS[task], "--precision", "fp32", "--json")
                ours[task].append(time.monotonic() - start)
            seconds = json.loads(call(sys.executable, __file__, "--peer", request, **offline).splitlines()[-1])
            for task in questions:
                theirs[task].append(seconds[task])
        for task in questions:
            a, b = statistics.median(ours[task]), statistics.median(theirs[task])
            items = options.questions if task != "gsm8k" else max(4, options.questions // 10)
            print(f"{task}, {SHOTS[task]} examples, {options.threads} threads: satune {items / a:.1f} questions/s, lm-eval "
                  f"{items / b:.1f} questions/s, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
