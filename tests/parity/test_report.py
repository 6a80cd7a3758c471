"""satune report: pages about true runs of a tiny model, their numbers against metrics.jsonl, folders that lack things,
and the page in a headless browser."""

import json
import math
import re
import shutil
import statistics

import pytest
from browser import check_page
from programs import call, refused
from report_runs import (  # the fixtures are asked for by name
    CARD, HEADINGS, THINGS, browser, cells, folder, metrics_of, page, report, runs, six_digits, synthetic, tree_of,
)  # noqa: F401

def test_numbers_are_those_of_the_rows(page, runs):
    rows, table = metrics_of(runs[0]), cells(page, "Numbers of the curves")
    assert len(rows) == 24
    scales = {"peak_memory_bytes": 2**-30}
    for key in ("loss", "eval_loss", "mean_token_accuracy", "learning_rate", "grad_norm", "tokens_per_s", "step_seconds",
                "peak_memory_bytes"):
        there = [(row["step"], row[key] * scales.get(key, 1)) for row in rows if row.get(key) is not None]
        steps, values = zip(*there)
        unit, *numbers = table[key]
        count, first, last, low, low_step, median, high, high_step = map(float, numbers)
        assert count == len(values) == (4 if key == "eval_loss" else 24)
        assert (first, last, low, high) == tuple(map(six_digits, (values[0], values[-1], min(values), max(values))))
        assert median == six_digits(statistics.median(values))
        assert (low_step, high_step) == (steps[values.index(min(values))], steps[values.index(max(values))])
    summary = cells(page, "What the run folder")
    assert summary["steps finished"] == ["24 of 24"] and summary["tokens trained"] == [str(rows[-1]["num_tokens"])]
    assert summary["energy"] == ["\N{EN DASH}"]
    assert "No row has: device_utilisation (needs a card" in page and "energy_per_token_j" in page


def test_curves_are_where_the_numbers_are(page, runs):
    """The polyline of the loss, from pixels back to numbers by the marks of the axes."""
    ns = "{http://www.w3.org/2000/svg}"
    (svg,) = [svg for svg in tree_of(page).iter(f"{ns}svg") if svg.find(f"{ns}title").text.startswith("Training loss")]
    labels = [(float(text.text), float(text.get("x")), float(text.get("y"))) for text in svg.iter(f"{ns}text")
              if re.fullmatch(r"-?[0-9.]+", text.text)]
    y_marks = [(value, y) for value, x, y in labels if x < 74]
    x_marks = [(value, x) for value, x, y in labels if x >= 74]

    def back(marks, pixel):
        (a, at_a), (b, at_b) = marks[0], marks[-1]
        return a + (pixel - at_a) / (at_b - at_a) * (b - a)

    curves = [line.get("points") for line in svg.iter(f"{ns}polyline") if line.get("stroke-width") == "2"]
    rows = metrics_of(runs[0])
    curves = [points for points in curves if len(points.split()) > 2]  # the others are the key to them
    assert len(curves) == 2
    for points, key in zip(curves, ("loss", "eval_loss")):
        drawn = [tuple(map(float, point.split(","))) for point in points.split()]
        wanted = [(row["step"], row[key]) for row in rows if key in row]
        assert len(drawn) == len(wanted)
        for (x, y), (step, value) in zip(drawn, wanted):
            assert back(x_marks, x) == pytest.approx(step, abs=0.02)
            assert back(y_marks, y) == pytest.approx(value, abs=0.02)


def test_data_settings_and_snapshots(page, runs, folder):
    data, known = json.loads((runs[0] / "data.json").read_text()), cells(page, "Counted when the run started")
    train = data["train"]
    assert train["records"] == len(THINGS) - 3 and data["eval"]["records"] == 3
    assert train["samples"] == train["records"] - train["dropped_empty"]
    assert sum(train["lengths"]["counts"]) == sum(train["target_lengths"]["counts"]) == train["samples"]
    width, counts = train["lengths"]["bin_width"], train["lengths"]["counts"]
    low, high = (sum(count * (i * width + end) for i, count in enumerate(counts)) for end in (0, width - 1))
    assert low <= train["tokens"] <= high and (len(counts) - 1) * width <= train["longest"] < len(counts) * width
    for key in ("records", "dropped_empty", "tokens", "target_tokens", "longest", "rows"):
        assert known[key] == [str(train[key]), str(data["eval"][key])]
    config = json.loads((runs[0] / "config.json").read_text())
    settings = cells(page, "config.json of the run folder")
    assert settings["learning_rate"] == ["0.01"] and settings["train_file"] == [config["train_file"]]
    assert settings["sharing.anchor"] == ["before"] and len(settings) > 40
    assert list(cells(page, "In snapshots/")) == ["12", "24"]
    assert cells(page, "In snapshots/")["24"][0] == "yes"


def test_the_page_needs_nothing_else(page):
    assert not re.search(r"src=|@import|url\(|<script|http(?!://www\.w3\.org/2000/svg|-equiv)", page)
    assert page.count("href=") == 1 and '<link rel="icon" href="data:,">' in page
    assert "default-src 'none'" in page and page.count("<svg") == 11
    headings = [heading.text for heading in tree_of(page).iter("h2")]
    assert headings == HEADINGS


def test_by_default_it_lies_in_the_run_folder_and_is_replaced(satune, runs):
    for _ in range(2):
        done = call(satune, "report", str(runs[0]) + "/")
        assert done.stdout.strip().endswith("report.html")
    written = runs[0] / "report.html"
    assert "<h1>Run fast</h1>" in written.read_text()
    written.unlink()


def test_several_runs_side_by_side(satune, runs, folder):
    page = report(satune, *runs, "--output", folder / "both.html", output=folder / "both.html")
    losses = [metrics_of(run)[-1]["loss"] for run in runs]
    assert [float(cell) for cell in cells(page, "What the run folder")["last training loss"]] == list(map(six_digits, losses))
    differ = cells(page, "Those that differ")
    assert {"learning_rate", "max_steps", "output_dir", "eval_samples", "eval_steps", "save_steps", "export_at_end"} == set(differ) and differ["learning_rate"] == ["0.01", "0.001"]
    assert "<h1>2 runs side by side</h1>" in page and "slow &lt;&amp;&gt;" in page


def test_energy_of_a_token(satune, synthetic, tmp_path):
    rows = [{"step": step, "loss": 2.0 / step, "num_tokens": 1000 * step, "tokens_per_s": 500.0 * step,
             "step_seconds": 2.0 / step, **CARD} for step in range(1, 5)]
    run = synthetic(rows)
    page = report(satune, run, output=run / "report.html")
    numbers = cells(page, "Numbers of the curves")["energy_per_token_j"]
    assert [float(numbers[i]) for i in (2, 3)] == [six_digits(400 / 500), six_digits(400 / 2000)]
    wh = sum(400 * row["step_seconds"] for row in rows) / 3600
    assert float(cells(page, "What the run")["energy"][0].split()[0]) == six_digits(wh)
    assert cells(page, "Numbers of the curves")["mfu"][2] == "41" and "No row has: eval_loss" in page
    # Several ranks: those that the snapshot tells of, or rank 0's card alone.
    run = synthetic([row | {"sent_reduced_bytes": 5} for row in rows], "ranks")
    page = report(satune, run, output=run / "report.html")
    assert "alone, since no snapshot tells the number of ranks" in page and cells(page, "What the run")["ranks"] == ["several"]
    state = run / "snapshots" / "step-00000004" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"world": {"size": 8, "zero_stage": 2}}))
    page = report(satune, run, output=run / "report.html")
    assert float(cells(page, "What the run")["energy"][0].split()[0]) == six_digits(8 * wh)
    assert cells(page, "In snapshots/")["4"] == ["no", "\N{EN DASH}", "8", "2"]


def test_broken_rows_are_left_out_and_told(satune, synthetic):
    run = synthetic([{"step": 1, "loss": 3.0}, {"step": 2, "loss": None, "grad_norm": None}, "not json\n", "[1]\n", "\n",
                     {"loss": 7.0}, {"step": 3, "loss": "high"}, {"step": 2, "loss": 99.0}, {"step": 4, "loss": 1.0},
                     '{"step": 5, "loss": 0.'], config="[", data='{"train": 3, "eval": {"lengths": []}, "x\u0001": "<\u0000"}')
    page = report(satune, run, output=run / "report.html")
    assert "metrics.jsonl: 4 lines are no rows" in page and "the last line is not finished" in page
    assert "loss is not finite in 1 row," in page and "config.json is not a JSON object" in page
    assert cells(page, "Numbers of the curves")["loss"][1:4] == ["2", "3", "1"]
    assert "99" not in cells(page)["loss"]


@pytest.mark.parametrize("kept", [["config.json"], ["metrics.jsonl"], ["config.json", "metrics.jsonl"]])
def test_folders_that_lack_files(satune, runs, tmp_path, kept):
    run = tmp_path / "run"
    run.mkdir()
    for name in kept:
        shutil.copy(runs[0] / name, run / name)
    page = report(satune, run, output=run / "report.html")
    tree = tree_of(page)
    assert [heading.text for heading in tree.iter("h2")] == HEADINGS
    told = " ".join(paragraph.text for paragraph in tree.iter("p"))
    assert ("config.json is not there" in told) == ("config.json" not in kept)
    assert ("no step is known" in told) == ("metrics.jsonl" not in kept)
    assert "data.json is not there" in told and "There is none yet." in told


def test_a_run_that_has_only_begun(satune, synthetic):
    run = synthetic([], config={"output_dir": "x"})
    page = report(satune, run, output=run / "report.html")
    assert cells(page, "What the run")["steps finished"] == ["0"] and page.count("<svg") == 0


def test_a_long_run_is_a_small_page_with_its_extremes(satune, synthetic):
    count = 20_000
    rows = [{"step": step, "loss": 3 + math.sin(step / 400), "grad_norm": 1.0, "learning_rate": 1e-5, "mean_token_accuracy": 0.5,
             "tokens_per_s": 1e4, "step_seconds": 1.0, "peak_memory_bytes": 1 << 33, **CARD} for step in range(1, count + 1)]
    rows[11_416]["loss"], rows[12_345]["loss"] = 9.75, 0.125
    run = synthetic(rows)
    page = report(satune, run, output=run / "report.html")
    assert len(page) < 2_000_000
    numbers = cells(page, "Numbers of the curves")["loss"]
    assert numbers[4:6] + numbers[7:] == ["0.125", "12346", "9.75", "11417"]
    ns = "{http://www.w3.org/2000/svg}"
    (svg,) = [svg for svg in tree_of(page).iter(f"{ns}svg") if svg.find(f"{ns}title").text == "Training loss"]
    (curve,) = [line for line in svg.iter(f"{ns}polyline") if line.get("stroke-width") == "2"]
    heights = [float(point.split(",")[1]) for point in curve.get("points").split()]
    assert 1500 < len(heights) <= 2000
    # Both spikes are in it: far from the waves between 2 and 4, above and below.
    middle = sorted(heights)[5:-5]
    assert min(heights) < middle[0] - 50 and max(heights) > middle[-1] + 20
    assert len(list(svg.iter(f"{ns}circle"))) == 0


def samples_of(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_samples_are_what_the_model_answers(satune, page, runs, folder):
    records, samples = json.loads((folder / "records.json").read_text()), samples_of(runs[0])
    assert [sample["step"] for sample in samples] == [6, 6, 12, 12, 18, 18, 24, 24]
    for sample in samples:
        record = records[sample["record"] - 1]
        assert record["instruction"] in sample["prompt"] and sample["expected"].strip() == record["output"].strip()
    assert len({sample["record"] for sample in samples}) == 2
    last = samples[-1]
    done = call(satune, "generate", runs[0] / "export", "--instruction", records[last["record"] - 1]["instruction"],
                "--max-new-tokens", 128, "--precision", "fp32", "--device", "cpu", "--json")
    assert json.loads(done.stdout)["text"].strip() == last["answer"].strip() != ""
    shown = [pre.text for pre in tree_of(page).iter("pre")]
    assert len(shown) == 2 * (2 + 4) and shown[-1] == last["answer"]
    assert not (runs[1] / "samples.jsonl").exists()


def test_samples_and_counts_change_no_bit_and_end_no_run(satune, runs, folder):
    """The same run without samples, into a folder where data.json cannot be written; and the first one again, with
    samples after its last step to cut."""
    (folder / "plain" / "data.json" / "in the way").mkdir(parents=True)
    (folder / "plain" / ".lock").touch()  # a run's folder: a file of somebody else's there would be refused
    done = call(satune, "train", folder / "fast.json", f"output_dir={folder / 'plain'}", "eval_samples=0", "export_at_end=false")
    assert "data.json" in done.stderr and "the run goes on without it" in done.stderr
    same = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "mean_token_accuracy")
    with_samples, without = ([[row.get(key) for key in same] for row in metrics_of(run)] for run in (runs[0], folder / "plain"))
    assert with_samples == without
    kept = (runs[0] / "samples.jsonl").read_text()
    with open(runs[0] / "samples.jsonl", "a") as out:
        out.write(json.dumps({"step": 25, "record": 1, "answer": "of a step that was lost"}) + '\n{"step": 1')
    call(satune, "train", folder / "fast.json")
    assert (runs[0] / "samples.jsonl").read_text() == kept


def test_samples_are_shown_by_record(satune, synthetic):
    run = synthetic([{"step": 1, "loss": 1.0}])
    samples = [{"step": step, "record": record, "prompt": f"<q{record}>", "expected": f"e{record}\nmore", "answer": f"a{record}@{step}"}
               for step in range(2, 62, 2) for record in (5, 9)]
    samples[0]["answer"] = "\u00e9" * 2000
    samples[-1]["cut"] = "time"
    (run / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\nbroken\n{\"step\": 99")
    page = report(satune, run, output=run / "report.html")
    texts = [pre.text for pre in tree_of(page).iter("pre")]
    assert len(texts) == 2 * (2 + 12)  # of 30 evaluations an even choice with both ends
    assert texts[:2] == ["<q5>", "e5\nmore"] and texts[13] == "a5@60" and texts[-1] == "a9@60"
    assert texts[2] == "\u00e9" * 750 + " \N{HORIZONTAL ELLIPSIS} (4000 bytes in all)"
    assert "1 lines are no samples" in page
    assert page.count("(cut short)") == 1 and "answer after step 60 (cut short)" in page


def test_errors_are_one_line(satune, runs, tmp_path):
    empty, taken = tmp_path / "empty", tmp_path / "taken.html"
    empty.mkdir()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    taken.write_text("")
    for arguments, words in ((["report", tmp_path / "none"], ["none", "no such folder"]),
                             (["report", empty], ["empty", "metrics.jsonl"]),
                             (["report", model], ["model", "metrics.jsonl"]),
                             (["report", *runs], ["--output"]),
                             (["report", runs[0], "--output", taken], ["--output", "taken.html"]),
                             (["watch", taken], ["taken.html", "no folder"])):
        line = refused(satune, *arguments)
        assert all(word in line for word in words), line
    call(satune, "watch", empty, "--port", "70000", code=2)
    call(satune, "watch", code=2)
    assert taken.read_text() == "" and list(empty.iterdir()) == []
    assert [path.name for path in model.iterdir()] == ["config.json"], "nothing is written into what is no run"


def test_the_report_in_a_browser(browser, satune, page, folder, runs, synthetic):
    opened = browser.open(f"file://{folder / 'fast.html'}")
    check_page(opened, HEADINGS, figures=11)
    assert opened.requested() == [f"file://{folder / 'fast.html'}"]
    assert opened.evaluate("document.title") == "Run fast"
    # One with every curve there is, and samples.
    run = synthetic([{"step": step, "loss": 3 / step, "eval_loss": 4 / step, "grad_norm": None, "tokens_per_s": 1e5 + step,
                      "step_seconds": 1.5, **CARD} for step in range(1, 300)])
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "record": 2, "prompt": "<script>alert(1)</script>",
                                                   "expected": "b", "answer": "c" * 3000}) + "\n")
    call(satune, "report", run)
    check_page(browser.open(f"file://{run / 'report.html'}"), HEADINGS, figures=7)
    # The page of compare about the same runs.
    call(satune, "compare", *runs, "--html", folder / "compare.html", "--max-rise", "loss=1000")
    check_page(browser.open(f"file://{folder / 'compare.html'}"), ["Comparison"], figures=0)
