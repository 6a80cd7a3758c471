"""The same questions for lm-eval and for satune: files as both read them, and what lm-eval 0.4.13 says about them,
live or as record_lm_eval.py has kept it. Choices are made up (lm_eval_questions.json), and so that a model of 260K
parameters is right about some of them and wrong about others: no metric is 0 or 1. Live, rows of the real files are
compared, too.
"""

import bz2
import csv
import json
import os
import pathlib
import random
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("SATUNE_LM_EVAL", HERE.parents[1] / ".venv" / "lm-eval"))
RECORD = HERE / "lm_eval_0.4.13.json"
SUBJECTS = ["anatomy", "moral_scenarios", "college_mathematics"]
CHOICES = ["cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli", "hellaswag"]
QUESTIONS = {  # name of a call -> (lm-eval's tasks, examples or the task's own number)
    "choices0": (CHOICES, 0),
    "choices3": (CHOICES, 3),
    "mmlu0": ([f"mmlu_{subject}" for subject in SUBJECTS], 0),
    "mmlu5": ([f"mmlu_{subject}" for subject in SUBJECTS], 5),
    "gsm8k": (["gsm8k"], None),
    "wikitext": (["wikitext"], None),
    "real0": (["hellaswag", "mrpc", "rte", "sst2"], 0),  # never recorded
}
LIMIT = 25

PAIR = ("index", "sentence1", "sentence2", "label")
MNLI = ("index", "sentence1", "sentence2", "label1", "gold_label")
OFFICIAL = {  # folder and file of GLUE's own data, its header, what stands in a row (the hub's names in braces)
    "cola": ("CoLA/dev.tsv", None, ("gj04", "{label}", "", "{sentence}")),
    "mnli": ("MNLI/dev_matched.tsv", MNLI, ("{idx}", "{premise}", "{hypothesis}", "neutral", "{label}")),
    "mnli_mismatch": ("MNLI/dev_mismatched.tsv", MNLI, ("{idx}", "{premise}", "{hypothesis}", "neutral", "{label}")),
    "mrpc": ("MRPC/dev.tsv", ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
             ("{label}", "1", "2", "{sentence1}", "{sentence2}")),
    "qnli": ("QNLI/dev.tsv", ("index", "question", "sentence", "label"), ("{idx}", "{question}", "{sentence}", "{label}")),
    "qqp": ("QQP/dev.tsv", ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            ("{idx}", "1", "2", "{question1}", "{question2}", "{label}")),
    "rte": ("RTE/dev.tsv", PAIR, ("{idx}", "{sentence1}", "{sentence2}", "{label}")),
    "sst2": ("SST-2/dev.tsv", ("sentence", "label"), ("{sentence}", "{label}")),
    "wnli": ("WNLI/dev.tsv", PAIR, ("{idx}", "{sentence1}", "{sentence2}", "{label}")),
}
HUB_COLUMNS = {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label", "text": "sentence"}
LABELS = {"mnli": ["entailment", "neutral", "contradiction"], "qnli": ["entailment", "not_entailment"],
          "rte": ["entailment", "not_entailment"]}
LABELS["mnli_mismatch"] = LABELS["mnli"]
ANSWERS = {  # what a model is trained here to answer: right or wrong, in either form of extraction
    "Lily": ("So it is 5.\n#### 5", "5"), "Tom": ("He has 3.\n#### 3", "4"), "Ben": ("I say 12.", "12"),
    "Sara": ("Yes.\n#### 8", "8"), "Tim": ("No 4, no.", "7"), "Mia": ("#### 1,018", "1018"),
}


def answer_prompt(name, draw):
    """A question among examples, as lm-eval shows one of gsm8k."""
    examples = "".join(f"Question: Is it {n}?\nAnswer: {n}\n#### {n}\n\n" for n in draw.choices(range(1, 10), k=5))
    return f"{examples}Question: How many, {name}?\nAnswer:"


def train_answers(stories, folder):
    """A model of two layers that has learnt ANSWERS by heart, however the draw of examples before a question falls."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(stories)
    torch.manual_seed(0)
    draw, names = random.Random(0), list(ANSWERS)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=7e-3)
    small = 0  # losses in a row
    for _ in range(600):
        rows = []
        for name in draw.sample(names, k=6):
            prompt = answer_prompt(name, draw)
            whole = tokenizer(f"{prompt} {ANSWERS[name][0]}\n\nQuestion:").input_ids
            rows.append((whole, len(tokenizer(prompt).input_ids)))
        length = max(len(whole) for whole, _ in rows)
        ids = torch.tensor([whole + [0] * (length - len(whole)) for whole, _ in rows])
        labels = torch.tensor([[-100] * before + whole[before:] + [-100] * (length - len(whole)) for whole, before in rows])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        small = small + 1 if loss.item() < 0.01 else 0
        if small == 6:
            break
    assert small == 6, "the answers are not known by heart"
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((stories / name).read_bytes())


def write_lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


def hub_rows(task, path):
    """The rows of an official GLUE file with a header as the hub has them: its names, labels and rows as numbers."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    header, documents = lines.pop(0), []
    for index, line in enumerate(lines):
        row = {HUB_COLUMNS.get(key, key): value for key, value in zip(header, line, strict=True)}
        names = LABELS.get(task, [])
        row["label"] = names.index(row["label"]) if row["label"] in names else int(row["label"])
        documents.append(row | {"idx": index})
    return documents


def real_hellaswag(path, count):
    """Rows of a text file that has each as six lines: "Activity: context", the right ending's number, four endings."""
    with bz2.open(path, "rt") as file:
        lines = [next(file).rstrip("\n") for _ in range(6 * count)]
    documents = []
    for i in range(0, len(lines), 6):
        activity, context = lines[i].split(": ", 1)
        first, _, second = context.rpartition(". ")
        documents.append({"activity_label": activity, "ctx_a": first + ".", "ctx_b": second, "endings": lines[i + 2 : i + 6],
                          "label": lines[i + 1]})
    return documents


def mmlu_rows(path):
    with open(path, newline="") as file:
        return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in csv.reader(file)]


class Questions:
    """Files of the tasks for both sides."""

    def __init__(self, folder, realdata):
        self.folder, self.realdata = folder, realdata
        self.model, self.answers_model = realdata / "stories260K_hf", folder / "answers"
        self.made_up = json.loads((HERE / "lm_eval_questions.json").read_text())
        self.ours, self.theirs = {}, {}  # our task name -> path; lm-eval's -> {split: file}
        self.real_ours, self.real_theirs = {}, {}  # the same, of the real files
        self.write_hellaswag()
        self.write_glue()
        self.write_real()
        self.write_gsm8k()
        self.write_mmlu()
        self.write_wikitext()

    def write_hellaswag(self):
        """Examples: among others each question three times, so that what is drawn has it more than once."""
        folder = self.folder / "hellaswag"
        folder.mkdir()
        documents = self.made_up["hellaswag"]
        others = [dict(document, activity_label=f"Example {i}", ind=None) for i, document in enumerate(documents)]
        files = {"validation": write_lines(folder / "hellaswag_val.jsonl", documents),
                 "train": write_lines(folder / "hellaswag_train.jsonl", documents * 3 + others)}
        self.ours["hellaswag"], self.theirs["hellaswag"] = folder, files

    def write_glue(self):
        """The examples are the questions, in another order of rows but for one: what is the same but for its row is
        another document."""
        splits = {"mnli": "validation_matched", "mnli_mismatch": "validation_mismatched"}
        for task, (name, header, columns) in OFFICIAL.items():
            path = self.folder / "glue" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = self.made_up[task.removesuffix("_mismatch")]
            files = {}
            for file, split, documents in ((path, splits.get(task, "validation"), rows),
                                           (path.parent / "train.tsv", "train", [rows[0], *reversed(rows[1:])])):
                lines = ["\t".join(header)] if header else []
                for index, row in enumerate(documents):
                    label = LABELS[task][row["label"]] if task in LABELS else row["label"]
                    lines.append("\t".join(columns).format(**row | {"label": label, "idx": index}))
                file.write_text("".join(line + "\n" for line in lines))
                files[split] = write_lines(self.folder / f"hub_{task}_{split}.jsonl",
                                           [row | {"idx": index} for index, row in enumerate(documents)])
            self.ours[f"glue_{task}"], self.theirs[task] = path, files

    def write_real(self):
        documents = real_hellaswag(self.realdata / "hellaswag/hellaswag_val_full.txt.bz2", LIMIT)
        path = write_lines(self.folder / "real_hellaswag.jsonl", documents)
        self.real_ours["hellaswag"], self.real_theirs["hellaswag"] = path, {"validation": path, "train": path}
        for task, name in (("mrpc", "MRPC"), ("rte", "RTE"), ("sst2", "SST-2")):
            path = self.realdata / "glue" / name / "dev.tsv"
            hub = write_lines(self.folder / f"real_{task}.jsonl", hub_rows(task, path)[:LIMIT])
            self.real_ours[f"glue_{task}"], self.real_theirs[task] = path, {"validation": hub, "train": hub}

    def write_gsm8k(self):
        folder = self.folder / "gsm8k"
        folder.mkdir()
        train_answers(self.model, self.answers_model)
        files = {"test": [{"question": f"How many, {name}?", "answer": f"so\n#### {right}"} for name, (_, right) in ANSWERS.items()],
                 "train": [{"question": f"Is it {n}?", "answer": f"{n}\n#### {n}"} for n in range(1, 10)]}
        self.ours["gsm8k"] = folder
        self.theirs["gsm8k"] = {split: write_lines(folder / f"{split}.jsonl", rows) for split, rows in files.items()}

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

    def model_of(self, call):
        return self.answers_model if call == "gsm8k" else self.model

    def ask_lm_eval(self, calls):
        """{call: {task: {"metrics": ..., "items": [log-likelihoods, or the text that was generated]}}}"""
        request, out = self.folder / "request.json", self.folder / "out.json"
        files = {call: self.real_theirs if call == "real0" else self.theirs for call in calls}
        requests = {call: {"model": str(self.model_of(call)), "shots": QUESTIONS[call][1],
                           "tasks": {task: files[call][task] for task in QUESTIONS[call][0]}} for call in calls}
        request.write_text(json.dumps({"limit": LIMIT, "calls": requests}))
        offline = {"PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1",
                   "HF_DATASETS_CACHE": str(self.folder / "cache")}
        done = subprocess.run([sys.executable, HERE / "lm_eval_oracle.py", request, out], capture_output=True,
                              text=True, env=os.environ | offline, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())
