"""Shared by the parity tests: the built programs, the real data, and no network."""

import json
import os
import pathlib
import subprocess
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# One of its own for every process: what two of them write at once, transformers reads half.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="satune_hf_modules_")

import pytest
from programs import ROOT, built


@pytest.fixture(scope="session")
def satune():
    return built("satune")


@pytest.fixture(scope="session")
def parity_tool():
    return built("parity_tool")


@pytest.fixture(scope="session")
def rank_tool():
    return built("rank_tool")


@pytest.fixture(scope="session")
def tool():
    """Calls tokenizer_tool with texts or lines of ids on its standard input."""
    from test_tokenizers import as_bytes

    path = built("tokenizer_tool")

    def run(*arguments, texts=(), lines=()):
        stdin = b"".join(b"%d\n%s" % (len(t), t) for t in map(as_bytes, texts))
        stdin += "".join(" ".join(map(str, line)) + "\n" for line in lines).encode()
        return subprocess.run([path, *map(str, arguments)], input=stdin, capture_output=True, check=True).stdout

    return run


@pytest.fixture(scope="session")
def llama3_json(realdata, tmp_path_factory):
    """A directory with Llama-3's tokenizer.json, which takes seconds to make: one for all files of tests."""
    from test_tokenizers import LLAMA3_SPECIALS
    from transformers.convert_slow_tokenizer import TikTokenConverter

    directory = tmp_path_factory.mktemp("llama3_json")
    converter = TikTokenConverter(str(realdata / "tok_llama3" / "tokenizer.model"), extra_special_tokens=LLAMA3_SPECIALS)
    converter.converted().save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def realdata():
    path = pathlib.Path(os.environ.get("SATUNE_REALDATA", ROOT.parent / "shared" / "realdata"))
    if not path.exists():
        pytest.skip(f"real data is not at {path} (set SATUNE_REALDATA)")
    return path


@pytest.fixture(scope="session")
def shim():
    return built("libfault_shim.so")


@pytest.fixture(scope="session")
def stories(realdata):
    path = realdata / "stories260K_hf"
    if not path.exists():
        pytest.skip(f"needs real data {path}")
    return path


@pytest.fixture
def stories_without_bos(stories, tmp_path):
    path = tmp_path / "stories_without_bos"
    path.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (path / name).write_bytes((stories / name).read_bytes())
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": "</s>"}))
    return path


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.json"
    rows = [
        {"instruction": f"Tell me about {thing}", "input": thing if i % 2 else "", "output": f"The {thing} was red. " * (1 + i % 3)}
        for i, thing in enumerate(["ball", "park", "girl", "dog", "caf\u00e9", "tree", "house"])
    ]
    path.write_text(json.dumps(rows))
    return path
