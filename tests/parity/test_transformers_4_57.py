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
import transformers
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = pathlib.Path(os.environ.get("SATUNE_TRANSFORMERS_457", HERE.parents[1] / ".venv" / "transformers-4.57"))


def run_457(*command, timeout=1200):
    if not FOLDER.exists():
        pytest.skip(f"transformers 4.57 is not at {FOLDER} (set SATUNE_TRANSFORMERS_457)")
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


# One process for all: each would import torch and transformers again.
FILES = ("test_oracle.py", "test_export.py", "test_chat_template.py")


def test_under_4_57():
    # The converter that makes Llama-3's tokenizer for test_chat_template.py is version 5's.
    done = run_457("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *(HERE / file for file in FILES),
                   "-k", "not (test_chat_template and llama3)")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


BEGIN = """
import sys, torch, transformers
print(transformers.__version__)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, local_files_only=True).eval()
"""
SAVE = BEGIN + "model.save_pretrained(sys.argv[2])"
LOGITS = BEGIN + """
from safetensors.torch import save_file
with torch.no_grad():
    save_file({"logits": model(torch.arange(3, 40)[None]).logits[0].contiguous()}, sys.argv[2])
"""


@pytest.mark.parametrize("saved_by", [4, 5])
def test_a_directory_saved_by_one_version_loads_in_the_other(tmp_path, monkeypatch, saved_by):
    """Version 5 saves rope_parameters alone and version 4 reads rope_theta and rope_scaling alone: without
    SALlamaConfig's translation the RoPE of the loaded model was the default one."""
    make_models.write_model(tmp_path / "model", "llama3_v4", "3-4")

    def in_version(version, script, *arguments):
        """In this process where it has the version: it has imported it already."""
        if version == 4:
            done = run_457("-c", script, *arguments)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("4.57."), done.stdout
        else:
            monkeypatch.setattr(sys, "argv", ["-c", *map(str, arguments)])
            exec(script, {})

    assert transformers.__version__.startswith("5.")
    in_version(saved_by, SAVE, tmp_path / "model", tmp_path / "saved")
    in_version(9 - saved_by, LOGITS, tmp_path / "saved", tmp_path / "logits.safetensors")
    keys = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert ("rope_theta" in keys) == (saved_by == 4)
    tokens = torch.arange(3, 40)
    batch = {"tokens": tokens, "positions": torch.arange(37), "document_starts": torch.tensor([0, 37])}
    expected = oracle.Oracle(tmp_path / "model", torch.float32).logits(batch)
    assert (load_file(tmp_path / "logits.safetensors")["logits"] - expected).abs().max() < 1e-4
