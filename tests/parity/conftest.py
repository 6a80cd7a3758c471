"""Shared by the parity tests: the built programs, the real data, and no network."""

import os
import pathlib
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="satune_hf_modules_"))

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
def realdata():
    path = pathlib.Path(os.environ.get("SATUNE_REALDATA", ROOT.parent / "shared" / "realdata"))
    if not path.exists():
        pytest.skip(f"real data is not at {path} (set SATUNE_REALDATA)")
    return path
