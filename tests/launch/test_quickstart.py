"""The quickstart's data, and what its table must show on the machine that runs this test."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "launch"))
import quickstart_data
import quickstart_table


def generate(folder, seed):
    script = ROOT / "launch" / "quickstart_data.py"
    subprocess.run([sys.executable, script, folder, "--seed", str(seed)], check=True, capture_output=True)
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def test_data_is_seeded(tmp_path):
    first, again, other = (generate(tmp_path / n, seed) for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again
    assert first["train.json"] != other["train.json"]


def test_no_held_out_input_is_trained(tmp_path):
    files = generate(tmp_path, 42)
    trained = {record["input"] for record in files["train.json"]}
    held_out = files["heldout.json"]
    assert len(files["train.json"]) >= 3000
    assert len(held_out) == quickstart_data.HELD_OUT_RECORDS * len(quickstart_data.FAMILIES)
    assert not [record for record in held_out if record["input"] in trained]


def test_answers_are_right():
    words = "moon apple fish bird".split()
    rng = quickstart_data.random.Random(0)
    answers = {name: make(words, rng) for name, make in quickstart_data.FAMILIES.items()}
    assert answers["reverse"][1] == ["bird", "fish", "apple", "moon"]
    assert answers["rotate"][1] == ["apple", "fish", "bird", "moon"]
    assert answers["sort"][1] == ["apple", "bird", "fish", "moon"]
    assert answers["swap"][1] == ["bird", "apple", "fish", "moon"]
    named = answers["after"][0].removesuffix(".").split()[-1]
    assert answers["after"][1] == words[words.index(named) + 1 :]
    named = answers["remove"][0].removesuffix(".").split()[-1]
    assert answers["remove"][1] == [word for word in words if word != named]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The quickstart's folder after a whole run with the program that is built, and what it printed."""
    build = pathlib.Path(os.environ.get("SATUNE_BUILD_DIR", ROOT / "build" / "release"))
    if not (build / "satune").exists():
        pytest.skip(f"satune is not built at {build} (set SATUNE_BUILD_DIR)")
    out = tmp_path_factory.mktemp("quickstart")
    # On one thread, as other tests run beside it: what is trained and shown is the same.
    command = [ROOT / "launch" / "quickstart.sh", "--no-setup", "--threads", "1", "--output", out]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)  # shown by pytest -s: the table
    return out, run.stdout, command


@pytest.fixture(scope="session")
def table(finished):
    return json.loads((finished[0] / "table.json").read_text())


def test_dense_base_has_learned_the_tasks(table):
    for family, share in table["dense"]["exact_match_by_family"].items():
        print(family, share)
    assert table["dense"]["exact_match"] >= 0.6
    assert table["dense"]["exact_match_by_family"]["reverse"] >= 0.6


def test_direct_sharing_is_visibly_worse(table):
    assert table["direct"]["response_loss"] >= 1.3 * table["dense"]["response_loss"]
    assert table["direct"]["exact_match"] < table["dense"]["exact_match"]


def test_fine_tuning_wins_back_half_of_the_lost_loss(table):
    assert quickstart_table.won_back(table) >= 0.5


def test_shared_model_is_smaller(table):
    assert table["sa"]["parameters"] < table["dense"]["parameters"]
    assert table["sa"]["kv_cache_bytes_per_token"] < table["dense"]["kv_cache_bytes_per_token"]
    assert table["sa"]["steps"] == table["dense_more"]["steps"]


def test_training_time_is_reported(table, capsys):
    seconds = sum(column.get("train_seconds", 0) for column in table.values())
    with capsys.disabled():
        print(f"\nquickstart: {seconds:.0f} s of training on one thread, beside other tests")
    assert seconds > 0


def test_output_shows_table_answers_and_export(finished):
    out, text, _ = finished
    for title in ("dense base", "SA, untrained", "SA, fine-tuned", "dense, fine-tuned", "KV-cache bytes/token"):
        assert title in text
    assert text.count("  -> ") == 2
    exported = out / "sa" / "export"
    assert json.loads((exported / "config.json").read_text())["model_type"] == "sa_llama"


def test_the_shared_run_was_interrupted_and_resumed(finished):
    out, text, _ = finished
    assert "interrupted on purpose after step" in text
    assert "resumed and finished: 150 steps, each of them logged once" in text
    steps = [json.loads(line)["step"] for line in (out / "sa" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 151))
    assert json.loads((out / "sa" / "snapshots" / "step-00000150" / "state.json").read_text())["world"]["size"] == 2


# A /dev of its own with the one file that tells of a card.
ONE_CARD = """set -e
mkdir "$0"; mount --rbind /dev "$0"; mount -t tmpfs tmpfs /dev
for name in null zero random urandom tty full; do touch "/dev/$name"; mount --bind "$0/$name" "/dev/$name"; done
mkdir /dev/shm; ln -s /proc/self/fd /dev/fd
touch /dev/nvidia0
exec "$@"
"""


def test_two_processes_do_not_share_the_one_card_of_a_machine(finished, tmp_path):
    """The shared run was refused on every machine with exactly one card."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to make namespaces (--mount)")
    out, _, command = finished
    again = tmp_path / "quickstart"
    shutil.copytree(out, again)
    (again / ".done-sa-fine-tune").unlink()
    one_card = ["unshare", "--mount", "bash", "-c", ONE_CARD, tmp_path / "dev"]
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    run = subprocess.run([*one_card, *command[:-1], again], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("skipped") == 8
    assert "resumed and finished: 150 steps, each of them logged once" in run.stdout


def test_second_run_skips_what_is_done(finished):
    _, text, command = finished
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped") == 9
    table = text[text.index("held-out response loss") : text.index("two held-out")]
    assert table in again.stdout
