"""The tests of the export and of the oracle again, under transformers 4.57 in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import make_models
import oracle
import pytest
import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("SATUNE_TRANSFORMERS_457", HERE.parents[1] / ".venv" / "transformers-4.57"))


def run_457(*command, timeout=1200):
    if not FOLDER.exists():
        pytest.skip(f"transformers 4.57 is not at {FOLDER} (set SATUNE_TRANSFORMERS_457)")
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def test_the_folder_holds_4_57():
    done = run_457("-c", "import transformers; print(transformers.__version__)")
    assert done.stdout.startswith("4.57."), done.stdout + done.stderr


@pytest.mark.parametrize("file, but", [("test_oracle.py", ""), ("test_export.py", ""),
                                       ("test_chat_template.py", "llama3")])  # whose converter is version 5's
def test_under_4_57(file, but):
    choice = ["-k", f"not {but}"] if but else []
    done = run_457("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", HERE / file, *choice)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


SAVE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, local_files_only=True)
model.save_pretrained(sys.argv[2])
"""
LOGITS = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, local_files_only=True).eval()
with torch.no_grad():
    save_file({"logits": model(torch.arange(3, 40)[None]).logits[0].contiguous()}, sys.argv[2])
"""


@pytest.mark.parametrize("saved_by", [4, 5])
def test_a_directory_saved_by_one_version_loads_in_the_other(tmp_path, saved_by):
    """Version 5 saves rope_parameters alone and version 4 reads rope_theta and rope_scaling alone: without
    SALlamaConfig's translation the RoPE of the loaded model was the default one."""
    make_models.write_model(tmp_path / "model", "llama3_v4", "3-4")

    def run_5(*command):
        return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)

    save, load = (run_457, run_5) if saved_by == 4 else (run_5, run_457)
    for done in (
        save("-c", SAVE, tmp_path / "model", tmp_path / "saved"),
        load("-c", LOGITS, tmp_path / "saved", tmp_path / "logits.safetensors"),
    ):
        assert done.returncode == 0, done.stderr
    keys = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert ("rope_theta" in keys) == (saved_by == 4)
    tokens = torch.arange(3, 40)
    batch = {"tokens": tokens, "positions": torch.arange(37), "document_starts": torch.tensor([0, 37])}
    expected = oracle.Oracle(tmp_path / "model", torch.float32).logits(batch)
    assert (load_file(tmp_path / "logits.safetensors")["logits"] - expected).abs().max() < 1e-4
