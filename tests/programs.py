"""The built programs as the tests of every folder call them."""

import os
import pathlib
import random
import resource
import socket
import subprocess

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


def call(program, *arguments, code=0, env=None, limit=None):
    """A finished process that ended with `code`. `limit`: bytes that it may allocate (RLIMIT_DATA)."""
    def set_limit():
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=600, env=env,
                          preexec_fn=set_limit)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def refused(program, *arguments, code=2, env=None, limit=None):
    """The one line of an error. Only a run and a plan say other things before it."""
    lines = call(program, *arguments, code=code, env=env, limit=limit).stderr.splitlines()
    errors = [line for line in lines if line.startswith("satune: error: ")]
    assert len(errors) == 1, lines
    assert arguments[:1] in (("train",), ("plan",)) or lines == errors, lines
    return errors[0]
