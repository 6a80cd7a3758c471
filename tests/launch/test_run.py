"""tests/run.sh must fail when any of its stages fails: its functions, over stand-ins for the programs."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_stages(tmp_path, pytest_output="3 passed in 1.0s", pytest_code=0, ctest_code=0, format_code=0, format_version="14.0.6"):
    """The script in a folder where cmake, ctest, clang-format and pytest are stand-ins."""
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_ins = {
        "cmake": "exit 0",
        "ctest": f"echo '100% tests passed, 0 tests failed out of 5'; exit {ctest_code}",
        "clang-format": f'[ "$1" = --version ] && echo "clang-format version {format_version}" && exit 0; exit {format_code}',
        "git": "echo a.cpp",
    }
    stand_ins["clang-format-14"] = stand_ins["clang-format"]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, body in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / ".venv/bin/python").write_text(f"#!/bin/sh\necho '{pytest_output}'\nexit {pytest_code}\n")
    for name in ("tests/run.sh", "launch/jobs.sh"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((ROOT / name).read_text())
    for program in [*programs.iterdir(), tmp_path / ".venv/bin/python"]:
        program.chmod(0o755)
    return subprocess.run(
        ["bash", "tests/run.sh", "--no-setup"],
        cwd=tmp_path,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_passes_and_ends_with_the_closing_lines(tmp_path):
    run = run_stages(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = run.stdout.split("=== summary")[1]
    assert "100% tests passed" in summary and "3 passed in 1.0s" in summary
    assert summary.strip().splitlines()[-1].startswith("all stages passed")


def test_failing_pytest_fails(tmp_path):
    run = run_stages(tmp_path, "1 failed, 2 passed in 1.0s", pytest_code=1)
    assert run.returncode == 1
    assert "FAILED: pytest;" in run.stdout


def test_failing_ctest_fails(tmp_path):
    run = run_stages(tmp_path, ctest_code=8)
    assert run.returncode == 1
    assert "FAILED: ctest release; ctest asan-ubsan;" in run.stdout


def test_unformatted_source_fails(tmp_path):
    assert run_stages(tmp_path, format_code=1).returncode == 1


def test_a_missing_or_another_clang_format_fails(tmp_path):
    """A stage that skips itself on every fresh machine checks nothing."""
    run = run_stages(tmp_path, format_version="18.1.3")
    assert run.returncode == 1
    assert "FAILED: format;" in run.stdout and "found no clang-format 14" in run.stdout


def test_skipping_for_a_program_that_is_not_built_fails(tmp_path):
    run = run_stages(tmp_path, "SKIPPED [3] conftest.py: satune is not built at /x (set SATUNE_BUILD_DIR)")
    assert run.returncode == 1
    assert "were not built" in run.stdout
