"""True runs of a tiny model and made-up ones, and how a page about them is read: for the tests of report and watch."""

import json
import re
import xml.etree.ElementTree

import pytest
from browser import Browser
from programs import call

THINGS = ["ball", "park", "girl", "dog", "tree", "house", "boat", "cake", "moon", "fish", "car", "hat"]
HEADINGS = ["Summary", "Learning", "Speed", "Device and energy", "Data and lengths", "Samples at each evaluation",
            "Snapshots", "Settings"]
CARD = {"device_power_w": 400.0, "device_temperature_c": 61.0, "device_utilisation": 97.0, "mfu": 0.41}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def runs(satune, folder):
    """Two runs of a tiny model that differ in learning rate, steps, samples and export."""
    arch, text, records = folder / "arch.json", folder / "text.txt", folder / "records.json"
    arch.write_text(json.dumps({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}))
    rows = [{"instruction": f"Tell me about <b>{thing}</b> & \"co\"", "output": f"The {thing} was red. " * (1 + i % 3)}
            for i, thing in enumerate(THINGS)]
    rows[3]["output"] = ""
    records.write_text(json.dumps(rows))
    text.write_text("\n".join(row["instruction"] + " " + row["output"] for row in rows))
    call(satune, "init", arch, folder / "model", "--train-tokenizer", text, "--vocab-size", 300)
    for name, steps, rate, samples in (("fast", 24, 1e-2, 2), ("slow <&>", 4, 1e-3, 0)):
        config = folder / f"{name}.json"
        config.write_text(json.dumps({
            "model_name_or_path": str(folder / "model"), "train_file": str(records), "output_dir": str(folder / name),
            "max_steps": steps, "eval_steps": steps // 4, "save_steps": steps // 2, "val_size": 3, "learning_rate": rate,
            "max_length": 400, "warmup_steps": 0, "precision": "fp32", "packing": False, "num_threads": 1,
            "gradient_accumulation_steps": 1, "export_at_end": samples > 0, "eval_samples": samples}))
        call(satune, "train", config)
    return folder / "fast", folder / "slow <&>"


@pytest.fixture(scope="module")
def page(satune, runs, folder):
    return report(satune, runs[0], "--output", folder / "fast.html", output=folder / "fast.html")


@pytest.fixture
def synthetic(tmp_path):
    """write(rows, more files...) makes a run folder of these rows."""
    def write(rows, name="run", **files):
        run = tmp_path / name
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" if isinstance(row, dict) else row for row in rows))
        for file, content in files.items():
            (run / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return run
    return write


def report(program, *arguments, output):
    call(program, "report", *arguments)
    return output.read_text()


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tree_of(page):
    """The page as XML: what is well-formed has escaped everything."""
    for tag in ("meta", "link"):
        page = re.sub(f"<{tag} [^>]*>", "", page)
    return xml.etree.ElementTree.fromstring(page.split("\n", 1)[1])


def cells(page, caption=None):
    """Rows of the tables (of those captions), by their first cell."""
    found = {}
    for table in tree_of(page).iter("table"):
        if caption is None or caption in table.find("caption").text:
            for row in table.find("tbody"):
                found[row[0].text] = [cell.text or "" for cell in row[1:]]
    return found


def six_digits(value):
    return pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def browser(folder):
    browser = Browser(folder / "profile")
    yield browser
    browser.close()
