"""Where the built programs are, and a port for them."""

import os
import pathlib
import random
import socket

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("SATUNE_BUILD_DIR", ROOT / "build" / "release"))


def built(name):
    """The program `name` of the build folder (SATUNE_BUILD_DIR, default build/release); skips without it."""
    path = BUILD / name
    if not path.exists():
        pytest.skip(f"{name} is not built at {path} (set SATUNE_BUILD_DIR)")
    return str(path)


def free_port():
    """Of this machine, for a program that is about to listen. Below those that the system hands out by itself, so that
    no outgoing connection takes it meanwhile, and drawn, so that tests that run side by side seldom meet."""
    while True:
        with socket.socket() as one:
            port = random.SystemRandom().randint(10000, 32000)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
