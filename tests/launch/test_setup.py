"""What set-up says about a machine it cannot use, before it changes anything."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def shell(script, tmp_path):
    """Runs `script` with lib_setup.sh sourced, in a folder that stands for a fresh checkout."""
    (tmp_path / ".setup" / "done").mkdir(parents=True, exist_ok=True)
    whole = f'set -euo pipefail; ROOT={tmp_path}; source {ROOT}/launch/lib_setup.sh; cd {tmp_path}; {script}'
    return subprocess.run(["bash", "-c", whole], capture_output=True, text=True)


def assert_one_line(run, code, *words):
    assert run.returncode == code, run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for word in words:
        assert word in lines[0]


def test_another_system_is_named(tmp_path):
    (tmp_path / "os-release").write_text('ID=fedora\nVERSION_ID="40"\n')
    run = shell("SATUNE_OS_RELEASE=os-release check_system", tmp_path)
    assert_one_line(run, 3, "found fedora 40", "expected Debian 12 or Ubuntu 24.04", "launch/Dockerfile")


def test_system_without_release_file_is_named(tmp_path):
    run = shell("SATUNE_OS_RELEASE=missing check_system", tmp_path)
    assert_one_line(run, 3, "found unknown")


def test_ubuntu_is_taken(tmp_path):
    (tmp_path / "os-release").write_text('ID=ubuntu\nVERSION_ID="24.04"\nVERSION="24.04 LTS (x y)"\n')
    assert shell("SATUNE_OS_RELEASE=os-release check_system", tmp_path).returncode == 0


def test_too_little_disk(tmp_path):
    run = shell("df() { echo Avail; echo 3000000; }; check_disk 0", tmp_path)
    assert_one_line(run, 3, "found 3 GB free", "expected 8 GB", "free some")


def test_disk_is_not_asked_for_twice(tmp_path):
    script = "df() { echo Avail; echo 3000000; }; touch .setup/done/libtorch .setup/done/nvcc; check_disk 0"
    assert shell(script, tmp_path).returncode == 0


def test_old_driver_means_cpu(tmp_path):
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    run = shell("SATUNE_DRIVER_FILE=driver check_driver", tmp_path)
    assert run.returncode == 0
    assert "found 535.183.01" in run.stdout and "580 or newer" in run.stdout and "CPU" in run.stdout


def test_open_kernel_module_is_read(tmp_path):
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    (tmp_path / "driver").write_text(line)
    assert "580.95.05" in shell("SATUNE_DRIVER_FILE=driver check_driver", tmp_path).stdout


def test_old_python(tmp_path):
    fake = tmp_path / "python-old"
    fake.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.8.1; exit 0; fi\nexit 1\n')
    fake.chmod(0o755)
    run = shell(f"SATUNE_PYTHON={fake} make_venv", tmp_path)
    assert_one_line(run, 3, "found Python 3.8.1", "expected 3.10 or newer", "SATUNE_PYTHON")


def test_no_python(tmp_path):
    run = shell("SATUNE_PYTHON=no-such-python make_venv", tmp_path)
    assert_one_line(run, 3, "found no no-such-python", "python3")


def test_finished_step_is_skipped_until_its_pins_change(tmp_path):
    script = """
      mkdir -p .venv/bin; printf '#!/bin/sh\\necho ran >>calls\\n' >.venv/bin/python; chmod +x .venv/bin/python
      echo torch==1 >pins; install_python torch pins; install_python torch pins
      echo torch==2 >pins; install_python torch pins; wc -l <calls"""
    run = shell(script, tmp_path)
    assert run.stdout.split() == ["setup:", "there", "already", "2"], run.stderr


def test_unknown_option():
    run = subprocess.run([ROOT / "launch" / "setup.sh", "--test"], capture_output=True, text=True)
    assert_one_line(run, 2, "--test", "--tests")
