"""What the build links can be loaded, wherever a program's code ends in its last page."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("SATUNE_BUILD_DIR", ROOT / "build/release"))
# A thread-local zero of one byte, as LibTorch's headers have one, and a constant with pointers in it.
PROGRAM = """
thread_local bool zero;
struct Base { virtual int f() const { return 1; } };
struct alignas(64) Derived : Base { int f() const override { return zero; } };
extern const Base* base;
const Derived derived;
const Base* base = &derived;
asm(".section .text.last, \\"ax\\"\\n.skip LENGTH, 0x90\\n.text");
int main() { return base->f(); }
"""
PAGE = 4096


def link_options():
    """The linker and its -z options, as the project's own programs are linked."""
    if not (BUILD / "build.ninja").exists():
        pytest.skip(f"the build's commands are not at {BUILD}")
    commands = subprocess.run(["ninja", "-C", str(BUILD), "-t", "commands", "test_files"], capture_output=True,
                              text=True, check=True).stdout.splitlines()
    words = commands[-1].split()
    return [word for word in words if word.startswith(("-fuse-ld=", "-Wl,-z"))]


def build(folder, length, options):
    """A program with length bytes after its code. Returns its path and the address of its thread-local zeros."""
    program = folder / f"program_{length}"
    subprocess.run([shutil.which("g++") or "c++", "-x", "c++", "-", "-o", str(program), *options], text=True,
                   input=PROGRAM.replace("LENGTH", str(length)), check=True)
    sections = subprocess.run(["readelf", "-SW", str(program)], capture_output=True, text=True, check=True).stdout
    return program, int(re.search(r"\.tbss\s+NOBITS\s+([0-9a-f]+)", sections).group(1), 16)


@pytest.mark.skipif(not (shutil.which("readelf") and shutil.which("ninja")), reason="readelf or ninja is not installed")
def test_thread_local_zeros_may_end_a_page(tmp_path):
    options = link_options()
    _, address = build(tmp_path, PAGE, options)
    lengths = [PAGE + (-address - before) % PAGE for before in range(8, 0, -1)]
    for length in lengths:
        program, _ = build(tmp_path, length, options)
        ended = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, ""), f"{length} bytes after the code, linked with {options}"
