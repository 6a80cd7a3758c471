"""A folder in which the documentation's commands run: a checkout with what its pages download and train, tiny or, for
dry runs, of the true shape and empty; and stand-ins for programs that need a network, a card or a cluster."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import textwrap

from programs import ROOT, call
from sparse_model import write_sparse_model
from stand_ins import AS_ROOT, write_program

SMALL = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "dtype": "float32",
}
NUMBERS = "one two three four five six seven eight".split()
LINES = {  # name of a file under benchmarks/ -> its rows
    "hellaswag/hellaswag_val.jsonl": [
        {"activity_label": "Tea", "ctx_a": "Boil the water.", "ctx_b": "then", "label": 1,
         "endings": ["eat the cup.", "pour it over the leaves.", "sing.", "sleep."]}] * 3,
    "gsm8k/test.jsonl": [{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}] * 2,
    "gsm8k/train.jsonl": [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(8)],
}
GLUE = {  # name of the hub's configuration -> a row
    "cola": {"sentence": "The dog ran.", "label": 1}, "sst2": {"sentence": "a fine film", "label": 1},
    "mnli": {"premise": "It rained.", "hypothesis": "It was wet", "label": 0},
    "mrpc": {"sentence1": "He ran.", "sentence2": "He was running.", "label": 1},
    "qnli": {"question": "Who ran?", "sentence": "Tom ran.", "label": 0},
    "qqp": {"question1": "How do I bake?", "question2": "How can I bake?", "label": 1},
    "rte": {"sentence1": "Tom ran.", "sentence2": "Tom moved.", "label": 0},
    "wnli": {"sentence1": "Tom lifted it because he was strong.", "sentence2": "Tom was strong.", "label": 1},
}
# Records its arguments, one JSON array a line in $RECORDS/NAME, and does what the lines after it say.
RECORD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
arguments = sys.argv[1:]
with open(pathlib.Path(os.environ["RECORDS"]) / "{name}", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
"""
STAND_INS = {
    # Puts what is downloaded where the real programs would.
    "hf": """
        if arguments[0] == "download":
            target = pathlib.Path(arguments[arguments.index("--local-dir") + 1])
            source = pathlib.Path(os.environ["DOWNLOADS"]) / arguments[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, dirs_exist_ok=True, copy_function=os.link)
        """,
    "curl": """
        target = pathlib.Path(arguments[arguments.index("-o") + 1])
        if "-d" in arguments:  # asks a server
            target.write_text(arguments[arguments.index("-d") + 1])
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pathlib.Path(os.environ["DOWNLOADS"]) / arguments[-1].split("/")[-1], target)
        """,
    # The batch script as Slurm runs it, as a dry run of one rank.
    "sbatch": """
        at = next(i for i, word in enumerate(arguments) if word.endswith(".sbatch"))
        variables = dict(os.environ, SLURM_JOB_ID="7", SLURM_JOB_NODELIST="node[7-8]", SLURM_SUBMIT_DIR=os.getcwd())
        sys.exit(subprocess.call(["bash", *arguments[at:], "--dry-run"], env=variables))
        """,
    "srun": """
        program = next(i for i, word in enumerate(arguments) if not word.startswith("-"))
        sys.exit(subprocess.call(arguments[program:]))
        """,
    "scontrol": "print('node7')",
    # The ranks' own arguments are what matters; that ranks start is tested where the scripts are.
    "torchrun": """
        program = arguments.index("train") - 1
        sys.exit(subprocess.call([*arguments[program:], "--dry-run"]))
        """,
    "kubectl": "", "pip": "", "vllm": "", "pkill": "", "tensorboard": "",
}
STAND_INS["mpirun"] = STAND_INS["torchrun"]
# The hub's rows, as the package hands them out.
DATASETS = """
import json, pathlib
class Rows(list):
    def to_json(self, path):
        pathlib.Path(path).write_text("".join(json.dumps(row) + "\\n" for row in self))
    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else list.__getitem__(self, key)
GLUE = json.loads(pathlib.Path(__file__).with_name("glue.json").read_text())
def load_dataset(name, config, split=None):
    if name == "Salesforce/wikitext":
        assert (config, split) == ("wikitext-2-raw-v1", "test")
        return Rows({"text": text} for text in ("", " = Ball = \\n", "", " The ball was red . \\n"))
    assert name == "nyu-mll/glue" and split is None
    validation = ["validation_matched", "validation_mismatched"] if config == "mnli" else ["validation"]
    return {part: Rows([GLUE[config]] * 2) for part in ["train", *validation]}
"""


def records(count):
    return [{"instruction": f"Count to {NUMBERS[n % 8]}.", "input": "" if n % 2 else f"in words, {n}",
             "output": " ".join(NUMBERS[: n % 8 + 1])} for n in range(count)]


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def copy_or_link(source, target):
    """What a page may change is copied; the shards, 16 GB of holes, are not."""
    (os.link if os.path.getsize(source) > 1 << 24 else shutil.copy2)(source, target)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class World:
    """What all pages share, made once: models, a run, data and downloads."""

    def __init__(self, folder, satune):
        self.folder, self.satune = folder, satune
        self.tree = folder / "tree"
        data = write_json(self.tree / "data" / "alpaca_data_cleaned.json", records(520))
        write_json(self.tree / "data" / "train.json", records(40))
        write_json(self.tree / "data" / "heldout.json", records(6))
        (self.tree / "data" / "book.txt").write_text("\n".join(record["output"] for record in records(12)))
        self.make_models(data)
        self.make_run(data)
        self.make_quickstart()
        self.make_benchmarks()
        self.make_downloads()

    def make_models(self, data):
        """Both of 32 layers, so that the spans of the pages are theirs."""
        tiny, true = self.tree / "models" / "tiny", self.tree / "models" / "Meta-Llama-3-8B"
        arch = write_json(self.folder / "arch.json", SMALL | {"vocab_size": 400, "num_hidden_layers": 32})
        call(self.satune, "init", arch, tiny, "--train-tokenizer", data)
        text = (ROOT / "configs" / "arch-llama3-8b.json").read_text()
        config = json.loads(re.sub(r"^//.*\n", "", text, flags=re.M)) | {"bos_token_id": 1, "eos_token_id": 2}
        write_sparse_model(true, config, tiny)

    def make_run(self, data):
        """A finished run under the name that the guides give theirs, and the config that continues it."""
        config = {
            "model_name_or_path": "models/tiny", "output_dir": "runs/llama3-8b-sa",
            "train_file": str(data.relative_to(self.tree)),
            "sharing": {"layers": "23-26"}, "max_length": 256, "val_size": 4, "max_steps": 4, "save_steps": 2,
            "warmup_steps": 1, "precision": "fp32", "device": "cpu", "num_threads": 1, "token_cache_dir": "",
        }
        write_json(self.tree / "tiny-run.json", config)
        subprocess.run([self.satune, "train", "tiny-run.json"], cwd=self.tree, check=True, capture_output=True)

        # And that of the large one, as the guide to fine-tuning makes it.
        keys = ["model_name_or_path=models/Meta-Llama-3-8B", "train_file=data/train.json", "eval_file=data/heldout.json"]
        large = call(self.satune, "train", ROOT / "configs" / "llama3-8b-sa.json", *keys, "--print-config").stdout
        (self.tree / "llama3.json").write_text(large)

    def make_quickstart(self):
        """What the quickstart leaves, after one step."""
        quickstart = self.tree / "runs" / "quickstart"
        data = write_json(quickstart / "data" / "train.json", records(40))
        write_json(quickstart / "data" / "heldout.json", records(6))
        write_json(quickstart / "data" / "heldout-sort.json", records(4))
        arch = write_json(self.folder / "eight.json", SMALL | {"vocab_size": 350, "num_hidden_layers": 8})
        template, init = ROOT / "configs" / "quickstart-template.json", quickstart / "init"
        call(self.satune, "init", arch, init, "--train-tokenizer", data, "--template", template)
        call(self.satune, "train", ROOT / "configs" / "quickstart-finetune.json", f"model_name_or_path={init}",
             f"train_file={data}", f"eval_file={quickstart / 'data' / 'heldout.json'}", f"output_dir={quickstart / 'dense'}",
             f"template={template}", "max_steps=1", "warmup_steps=0", "token_cache_dir=", "device=cpu", "num_threads=1")
        shutil.copytree(quickstart / "dense", quickstart / "dense-more")

    def make_benchmarks(self):
        for name, rows in LINES.items():
            write_lines(self.tree / "benchmarks" / name, rows)
        for split in ("test", "dev"):
            path = self.tree / "benchmarks" / "mmlu" / split / f"anatomy_{split}.csv"
            path.parent.mkdir(parents=True)
            path.write_text("How many hands?,one,two,three,four,B\n" * 5)

    def make_downloads(self):
        """By the last part of their address, or by the hub's name."""
        downloads = self.folder / "downloads"
        downloads.mkdir()
        shutil.copytree(self.tree / "models" / "Meta-Llama-3-8B", downloads / "meta-llama" / "Meta-Llama-3-8B",
                        copy_function=copy_or_link)
        shutil.copytree(self.tree / "data", downloads / "yahma" / "alpaca-cleaned")
        for name in LINES:
            shutil.copy(self.tree / "benchmarks" / name, downloads)
        with tarfile.open(downloads / "data.tar", "w") as archive:
            archive.add(self.tree / "benchmarks" / "mmlu", "data")
        modules = self.folder / "modules"
        modules.mkdir()
        (modules / "datasets.py").write_text(DATASETS)
        write_json(modules / "glue.json", GLUE)


class Sandbox:
    """One page's folder. `absent`: what the page itself has to make first."""

    def __init__(self, folder, world, absent=()):
        self.folder, self.records = folder, folder.parent / (folder.name + "-records")
        self.records.mkdir()
        shutil.copytree(world.tree, folder, copy_function=copy_or_link)
        for path in absent:
            (shutil.rmtree if (folder / path).is_dir() else pathlib.Path.unlink)(folder / path)
        for name in ("configs", "launch", "tests", "docs", "CMakePresets.json"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "build" / "release").mkdir(parents=True)
        (folder / "build" / "release" / "satune").symlink_to(world.satune)
        write_program(folder / ".setup" / "environment.sh", "")
        programs = folder.parent / (folder.name + "-programs")
        for name, text in STAND_INS.items():
            head = RECORD.format(python=ROOT / ".venv" / "bin" / "python", name=name)
            write_program(programs / name, head + textwrap.dedent(text))
        # The guides call these by their path.
        for name in ("pip", "hf"):
            (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
            (folder / ".venv" / "bin" / name).symlink_to(programs / name)
        clean = {n: v for n, v in os.environ.items()
                 if not n.startswith(("SLURM", "OMPI", "TORCHELASTIC", "SATUNE")) and n not in ("RANK", "WORLD_SIZE")}
        self.environment = clean | AS_ROOT | {
            "PATH": f"{programs}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
            "RECORDS": str(self.records), "DOWNLOADS": str(world.folder / "downloads"), "HOME": str(folder),
            "PYTHONPATH": str(world.folder / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "TORCHRUN": str(programs / "torchrun"),
            "HF_MODULES_CACHE": str(folder.parent / (folder.name + "-modules")),
        }

    def run(self, command, program=("bash", "-ec")):
        return subprocess.run([*program, command], cwd=self.folder, env=self.environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=300)

    def recorded(self, name):
        """[arguments of a call] of a stand-in."""
        file = self.records / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
