"""Benchmarks against lm-eval 0.4.13 on the same model and the same files: every log-likelihood, every choice whose
two best are clearly apart, every generated answer, the metrics and their standard errors.

lm-eval runs offline in a process of its own. Data that are not in the real-data folder are made here.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("SATUNE_LM_EVAL", HERE.parents[1] / ".venv" / "lm-eval"))
TOLERANCE = 1e-3
CLEAR = 2e-3  # two best that differ by more are ranked the same by both
LIMIT = 25

HELLASWAG = [  # made up; the marks are those that the real texts have
    ("Roof shingle removal", "A man is sitting on a roof.", "he",
     ["is using wrap to wrap a pair of skis.", "is ripping level tiles [substeps] off.", "is holding  a cube.",
      "starts pulling up roofing on a roof."], 3),
    ("Making tea", "[header] How to make tea [title] Boil the water. [step] Use a kettle.", "",
     ["Pour it over the leaves. [substeps] Wait. [title] Drink.", "Throw the kettle away.", "Sing to the cup!", "Sleep."], 0),
    ("Playing", "Lily and Tom went to the park to play with a ball.", "they WERE happy and Lily",
     ["kicked the ball to Tom.", "ate the moon.", "was a big red car \u2014 fast.", "said, \"Tom, look at the caf\u00e9!\""], 0),
    ("Cooking", "Mom made a cake. ", "\u00c9mile liked the cake. The dog",
     ["barked.", "cooked a very long dinner for the whole town and then went home to sleep.", "ran.", "sat down"], 2),
]
GLUE = {  # lm-eval's name -> (folder and file of the official data, header or None, rows as text, hub's columns)
    "cola": ("CoLA/dev.tsv", None, [("gj04", "1", "", "The sailors rode the breeze clear of the rocks."),
                                    ("gj04", "0", "*", "The dog barked its way out of the \"room.")]),
    "mnli": ("MNLI/dev_matched.tsv", ("index", "sentence1", "sentence2", "label1", "gold_label"),
             [("0", "A girl plays.", "The girl is happy ", "neutral", "neutral"),
              ("1", "It rained all day.", "It was dry.", "neutral", "contradiction"),
              ("2", "Tom has a red ball.", "Tom has a ball", "entailment", "entailment")]),
    "mnli_mismatch": ("MNLI/dev_mismatched.tsv", ("index", "sentence1", "sentence2", "label1", "gold_label"),
                      [("0", "He went home.", "He is at home.", "neutral", "neutral"),
                       ("1", "She ate.", "She did eat", "neutral", "entailment")]),
    "qnli": ("QNLI/dev.tsv", ("index", "question", "sentence", "label"),
             [("0", "Who ran?", "Tom ran to the park.", "entailment"),
              ("1", "What is red?", "The sun was out.", "not_entailment")]),
    "qqp": ("QQP/dev.tsv", ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            [("1", "2", "3", "How do I bake?", "How can I bake?", "1"),
             ("4", "5", "6", "Where is the dog?", "What is a \"cat\"?", "0")]),
    "wnli": ("WNLI/dev.tsv", ("index", "sentence1", "sentence2", "label"),
             [("0", "The drain is clogged with hair. It has to be cleaned.", "The hair has to be cleaned.", "0"),
              ("1", "Tom lifted the box because he was strong.", "Tom was strong.", "1")]),
}
HUB_COLUMNS = {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label", "gold_label": "label",
               "is_duplicate": "label", "text": "sentence"}
HUB_LABELS = {"mnli": ["entailment", "neutral", "contradiction"], "qnli": ["entailment", "not_entailment"]}


def write_lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


def hub_rows(task, path, header=None):
    """The rows of an official GLUE file as the hub has them: its names, labels as numbers."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    header = header or lines.pop(0)
    documents = []
    for line in lines:
        row = dict(zip(header, line, strict=True))
        if task.startswith("mnli"):
            row = {"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": row["gold_label"]}
        row = {HUB_COLUMNS.get(key, key): value for key, value in row.items()}
        labels = HUB_LABELS.get(task.removesuffix("_mismatch"))
        row["label"] = labels.index(row["label"]) if labels else int(row["label"])
        documents.append(row)
    return documents


def mmlu_rows(path):
    with open(path, newline="") as file:
        return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in csv.reader(file)]


class Bench:
    """Data of the tasks for both sides, and what each says about them."""

    def __init__(self, folder, realdata, satune):
        self.folder, self.realdata, self.satune = folder, realdata, satune
        self.model = realdata / "stories260K_hf"
        self.ours, self.theirs = {}, {}  # our task name -> path; lm-eval's -> {split: file}
        self.write_hellaswag()
        self.write_glue()
        self.gsm8k()
        self.subjects = ["anatomy", "moral_scenarios", "college_mathematics"]
        self.write_mmlu()

    def write_hellaswag(self):
        folder = self.folder / "hellaswag"
        folder.mkdir()
        documents = [{"activity_label": a, "ctx_a": b, "ctx_b": c, "endings": d, "label": str(e)}
                     for a, b, c, d, e in HELLASWAG]
        train = [dict(document, activity_label=f"Example {i}") for i in range(10) for document in documents]
        files = {"validation": write_lines(folder / "hellaswag_val.jsonl", documents),
                 "train": write_lines(folder / "hellaswag_train.jsonl", train)}
        self.ours["hellaswag"], self.theirs["hellaswag"] = folder, files

    def write_glue(self):
        official = {"mrpc": self.realdata / "glue/MRPC/dev.tsv", "rte": self.realdata / "glue/RTE/dev.tsv",
                    "sst2": self.realdata / "glue/SST-2/dev.tsv"}
        headers = {"cola": ("source", "label", "star", "sentence")}
        for task, (name, header, rows) in GLUE.items():
            path = self.folder / "glue" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = ([header] if header else []) + rows
            path.write_text("".join("\t".join(line) + "\n" for line in lines))
            official[task] = path
        for task, path in official.items():
            documents = hub_rows(task, path, headers.get(task))
            hub = write_lines(self.folder / f"hub_{task}.jsonl", documents)
            splits = {"mnli": "validation_matched", "mnli_mismatch": "validation_mismatched"}
            self.ours[f"glue_{task}"] = path
            self.theirs[task] = {splits.get(task, "validation"): hub, "train": hub}

    def gsm8k(self):
        folder = self.folder / "gsm8k"
        folder.mkdir()
        lines = (self.realdata / "gsm8k/test.jsonl").read_text().splitlines(keepends=True)
        (folder / "test.jsonl").write_text("".join(lines[:4]))
        (folder / "train.jsonl").write_text("".join(lines[4:120]))
        self.ours["gsm8k"] = folder
        self.theirs["gsm8k"] = {"test": str(folder / "test.jsonl"), "train": str(folder / "train.jsonl")}

    def write_mmlu(self):
        folder = self.folder / "mmlu"
        for split in ("test", "dev"):
            (folder / split).mkdir(parents=True)
            for subject in self.subjects:
                source = self.realdata / "mmlu" / split / f"{subject}_{split}.csv"
                (folder / split / source.name).write_bytes(source.read_bytes())
                hub = write_lines(self.folder / f"hub_{subject}_{split}.jsonl", mmlu_rows(source))
                self.theirs.setdefault(f"mmlu_{subject}", {})[split] = hub
        self.ours["mmlu"] = folder

    def run_lm_eval(self, tasks, shots):
        request, out = self.folder / "request.json", self.folder / "out.json"
        request.write_text(json.dumps({"model": str(self.model), "limit": LIMIT, "shots": shots,
                                       "tasks": {task: self.theirs[task] for task in tasks}}))
        offline = {"PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1",
                   "HF_DATASETS_CACHE": str(self.folder / "cache")}
        done = subprocess.run([sys.executable, HERE / "lm_eval_oracle.py", request, out], capture_output=True,
                              text=True, env=os.environ | offline, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())

    def run_satune(self, name, tasks, *options):
        report = self.folder / f"{name}.json"
        arguments = [word for task in tasks for word in ("--task", f"{task}={self.ours[task]}")]
        done = subprocess.run([self.satune, "eval", self.model, *arguments, "--precision", "fp32", "--limit", str(LIMIT),
                               "--output", report, *map(str, options)], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        items = {}
        for line in report.with_suffix(".items.jsonl").read_text().splitlines()[1:]:
            line = json.loads(line)
            items.setdefault(line["run"], {})[line["item"]] = line["result"]
        return json.loads(report.read_text())["tasks"], items


@pytest.fixture(scope="module")
def bench(tmp_path_factory, realdata, satune):
    if not FOLDER.exists():
        pytest.skip(f"lm-eval is not at {FOLDER} (set SATUNE_LM_EVAL)")
    return Bench(tmp_path_factory.mktemp("lm_eval"), realdata, satune)


def compare_choices(name, items, samples):
    """Log-likelihoods of every choice; returns how many there were. transformers drops a space before the text
    where sentencepiece keeps it, so such prompts cannot be compared (none of the tasks' own begin so)."""
    assert len(items) == len(samples) > 0
    compared = 0
    for index, sample in enumerate(samples):
        found, expected = items[index], [response[0][0] for response in sample["none"]["responses"]]
        assert not sample["none"]["arguments"][0][0].startswith(" ")
        assert found["log_likelihoods"] == pytest.approx(expected, abs=TOLERANCE), (name, index)
        ranked = sorted(expected, reverse=True)
        if ranked[0] - ranked[1] > CLEAR:
            ours = max(range(len(expected)), key=found["log_likelihoods"].__getitem__)
            assert ours == expected.index(ranked[0]), (name, index)
        compared += len(expected)
    return compared


def compare_metric(found, expected, metric):
    assert found[metric] == pytest.approx(expected[f"{metric},none"], abs=1e-9), metric
    if metric in ("acc", "acc_norm"):
        assert found[f"{metric}_stderr"] == pytest.approx(expected[f"{metric}_stderr,none"], abs=1e-9)


@pytest.mark.parametrize("shots", [0, 3])
def test_choices(bench, shots, capsys):
    tasks = [task for task in bench.ours if task.startswith("glue_")] + ["hellaswag"]
    if shots:  # examples come from the train split; the small made-up files have too few rows
        tasks = ["hellaswag"]
    theirs = bench.run_lm_eval([task.removeprefix("glue_") for task in tasks], shots)
    reports, items = bench.run_satune(f"choices{shots}", tasks, "--num-fewshot", shots)
    metrics = {"hellaswag": ["acc", "acc_norm"], "glue_cola": ["mcc"], "glue_mrpc": ["acc", "f1"],
               "glue_qqp": ["acc", "f1"]}
    compared = 0
    for task in tasks:
        expected = theirs[task.removeprefix("glue_")]
        compared += compare_choices(task, items[task], expected["samples"])
        for metric in metrics.get(task, ["acc"]):
            compare_metric(reports[task], expected["metrics"], metric)
    with capsys.disabled():
        print(f"\n{compared} log-likelihoods of {len(tasks)} tasks with {shots} examples agree with lm-eval's")


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu(bench, shots):
    theirs = bench.run_lm_eval([f"mmlu_{subject}" for subject in bench.subjects], shots)
    reports, items = bench.run_satune(f"mmlu{shots}", ["mmlu"], "--num-fewshot", shots)
    # Items stand in the order of the subjects.
    first = 0
    for subject in sorted(bench.subjects):
        expected = theirs[f"mmlu_{subject}"]
        here = {index: items["mmlu"][first + index] for index in range(LIMIT)}
        compare_choices(subject, here, expected["samples"])
        compare_metric(reports["mmlu"]["subjects"][subject], expected["metrics"], "acc")
        first += LIMIT
    mean = sum(theirs[f"mmlu_{subject}"]["metrics"]["acc,none"] for subject in bench.subjects) / len(bench.subjects)
    assert reports["mmlu"]["acc"] == pytest.approx(mean)
    assert reports["mmlu"]["categories"]["stem"]["n"] == 2 * LIMIT


def test_gsm8k(bench):
    expected = bench.run_lm_eval(["gsm8k"], None)["gsm8k"]
    reports, items = bench.run_satune("gsm8k", ["gsm8k"])
    assert reports["gsm8k"]["n"] == 4
    for index, sample in enumerate(expected["samples"]):
        text = sample["strict-match"]["responses"][0][0]
        assert items["gsm8k"][index]["text"].strip() == text.strip()
    assert reports["gsm8k"]["exact_match"] == expected["metrics"]["exact_match,strict-match"]
    assert reports["gsm8k"]["exact_match_flexible"] == expected["metrics"]["exact_match,flexible-extract"]
