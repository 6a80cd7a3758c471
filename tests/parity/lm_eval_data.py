"""The same questions for lm-eval and for satune: files as both read them, and what lm-eval 0.4.13 says about them,
live or as record_lm_eval.py has kept it. Data that are not in the real-data folder are made here.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("SATUNE_LM_EVAL", HERE.parents[1] / ".venv" / "lm-eval"))
RECORD = HERE / "lm_eval_0.4.13.json"
SUBJECTS = ["anatomy", "moral_scenarios", "college_mathematics"]
QUESTIONS = {  # name of a call -> (lm-eval's tasks, examples or the task's own number)
    "choices0": (["cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli", "hellaswag"], 0),
    "choices3": (["hellaswag"], 3),
    "mmlu0": ([f"mmlu_{subject}" for subject in SUBJECTS], 0),
    "mmlu5": ([f"mmlu_{subject}" for subject in SUBJECTS], 5),
    "gsm8k": (["gsm8k"], None),
    "wikitext": (["wikitext"], None),
}
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


class Questions:
    """Files of the tasks for both sides."""

    def __init__(self, folder, realdata):
        self.folder, self.realdata = folder, realdata
        self.model = realdata / "stories260K_hf"
        self.ours, self.theirs = {}, {}  # our task name -> path; lm-eval's -> {split: file}
        self.write_hellaswag()
        self.write_glue()
        self.write_gsm8k()
        self.write_mmlu()
        self.write_wikitext()

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

    def write_gsm8k(self):
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
            for subject in SUBJECTS:
                source = self.realdata / "mmlu" / split / f"{subject}_{split}.csv"
                (folder / split / source.name).write_bytes(source.read_bytes())
                hub = write_lines(self.folder / f"hub_{subject}_{split}.jsonl", mmlu_rows(source))
                self.theirs.setdefault(f"mmlu_{subject}", {})[split] = hub
        self.ours["mmlu"] = folder

    def write_wikitext(self):
        """The first pages of the test split, and one whose marks those do not have."""
        lines = (self.realdata / "wikitext2/wiki.test.raw").read_text().splitlines()[:60]
        marks = [" = Marks = ", "", " It 's 5 @.@ 5 \u00b0 C ( or so ) at 3 @,@ 000 m ; he said \" so it is \" : yes ! "
                 "The boys ' 7 [ sic ] N dogs ' x ' / ' 3/ ran , ran ? { No }", " = = Sub = = ", " = = = Subsub = = = ", " End . "]
        pages = [[]]
        for line in lines + marks:
            if line.startswith(" = ") and not line.startswith(" = = "):
                pages.append([])
            pages[-1].append(line)
        # Without the space that real pages begin with: transformers drops it where sentencepiece keeps it.
        pages = [page.lstrip(" ") for page in map("\n".join, pages) if page.strip()]
        path = self.folder / "wikitext" / "test.jsonl"
        path.parent.mkdir()
        hub = write_lines(path, [{"page": page} for page in pages])
        self.ours["wikitext"], self.theirs["wikitext"] = path.parent, {"test": hub, "train": hub}

    def ask_lm_eval(self):
        """{call: {task: {"metrics": ..., "items": [log-likelihoods, or the text that was generated]}}}"""
        request, out = self.folder / "request.json", self.folder / "out.json"
        calls = {call: {"shots": shots, "tasks": {task: self.theirs[task] for task in tasks}}
                 for call, (tasks, shots) in QUESTIONS.items()}
        request.write_text(json.dumps({"model": str(self.model), "limit": LIMIT, "calls": calls}))
        offline = {"PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1",
                   "HF_DATASETS_CACHE": str(self.folder / "cache")}
        done = subprocess.run([sys.executable, HERE / "lm_eval_oracle.py", request, out], capture_output=True,
                              text=True, env=os.environ | offline, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())
