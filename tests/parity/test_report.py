"""satune report and satune watch: pages about true runs of a tiny model, their numbers against metrics.jsonl, folders
that lack things or are being written, the server's manners, and both pages in a headless browser."""

import contextlib
import http.client
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import time
import xml.etree.ElementTree

import pytest
from browser import Browser, check_page
from programs import call, refused

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


# Report


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
    assert "loss is not finite in 1 rows" in page and "config.json is not a JSON object" in page
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
    taken.write_text("")
    for arguments, words in ((["report", tmp_path / "none"], ["none", "no such folder"]),
                             (["report", empty], ["empty", "metrics.jsonl"]),
                             (["report", *runs], ["--output"]),
                             (["report", runs[0], "--output", taken], ["--output", "taken.html"]),
                             (["watch", taken], ["taken.html", "no folder"])):
        line = refused(satune, *arguments)
        assert all(word in line for word in words), line
    call(satune, "watch", empty, "--port", "70000", code=2)
    call(satune, "watch", code=2)
    assert taken.read_text() == "" and list(empty.iterdir()) == []


# Watch


def tables_of(port, caption):
    answer, body = get(port, "/body")
    assert answer.status == 200
    return cells(f"<x>\n<html><body>{body}</body></html>", caption)


@contextlib.contextmanager
def watching(program, *runs, stop=signal.SIGINT):
    """The port of a server over the runs, which ends with 0 when it is stopped."""
    process = subprocess.Popen([program, "watch", *map(str, runs), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield int(re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])
        process.send_signal(stop)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def port(satune, runs):
    with watching(satune, runs[0]) as port:
        yield port


def get(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def raw(port, data, wait=True):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while wait and (part := connection.recv(65536)):
            received += part
        return received


def test_the_live_page_is_the_report(port, page):
    answer, live = get(port)
    assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.getheader("Content-Security-Policy")
    answer, body = get(port, "/body?now=1")
    inside = page.split("<main>\n")[1].split("</main>")[0]
    assert body == inside and inside in live
    tag = answer.getheader("ETag")
    assert get(port, "/body", If_None_Match=tag)[0].status == 304
    assert get(port, "/body", If_None_Match='"other"')[0].status == 200


def test_only_its_two_pages_and_only_from_here(port, runs):
    for path in ("/metrics.jsonl", "/../config.json", "/..%2fconfig.json", "//etc/passwd", "/body/", "/%2e%2e/", "/favicon.ico"):
        answer, body = get(port, path)
        assert (answer.status, body) == (404, "404 Not Found\n"), path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        answer, _ = get(port, method=method)
        assert answer.status == 405 and answer.getheader("Allow") == "GET"
    assert get(port, Host="evil.example")[0].status == 403
    assert get(port, Host="127.0.0.1.evil.example:80")[0].status == 403
    assert get(port, Host="localhost:9999")[0].status == 200
    with pytest.raises(OSError):
        for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}:
            socket.create_connection((address, port), timeout=5).close()
        raise OSError("no other address to try")


def test_bad_requests_do_not_disturb(port):
    for data in (b"\r\n\r\n", b"GET\r\n\r\n", b"GET / FTP/1.0\r\n\r\n", b"GET http://x/ HTTP/1.1\r\n\r\n", b"x" * 9000,
                 b"GET / HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n\r\n", b"\x00\xff\r\n\r\n"):
        assert raw(port, data).startswith(b"HTTP/1.1 400 "), data[:20]
    assert raw(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    # Many that say nothing, some that leave in the middle: the next one is answered all the same.
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for _ in range(20):
        raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", wait=False)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        for byte in b"GET /body HTTP/1.0\r\nHost: localhost\r\n\r\n":
            slow.sendall(bytes([byte]))
        assert slow.recv(20).startswith(b"HTTP/1.1 200 ")
    assert get(port)[0].status == 200
    for connection in idle:
        connection.close()


def test_clients_that_say_nothing_keep_nobody_out(port):
    """More of them than the server keeps connections, and for less time than it keeps one."""
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    begin = time.monotonic()
    assert get(port)[0].status == 200
    assert time.monotonic() - begin < 8
    for connection in idle:
        connection.close()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_descriptors_it_waits_and_says_so_once(satune, runs, tmp_path):
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([satune, "watch", runs[0], "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True,
                                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    try:
        port = int(re.match(r"http://127\.0\.0\.1:(\d+)/ ", process.stdout.readline())[1])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        time.sleep(1)
        before = cpu_seconds(process.pid)
        time.sleep(3)
        assert cpu_seconds(process.pid) - before < 0.5
        for connection in idle:
            connection.close()
        assert get(port)[0].status == 200
        assert (tmp_path / "log").read_text().count("Too many open files") == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_port_in_use_is_exit_3(satune, runs, port):
    line = refused(satune, "watch", runs[0], "--port", port, code=3)
    assert f"--port {port}" in line and "127.0.0.1" in line


def test_a_run_that_is_being_written(satune, synthetic):
    """Rows appear as they are appended, also those of halves; what a resume cuts disappears; the folder is only read."""
    run = synthetic([])
    rows = run / "metrics.jsonl"
    rows.unlink()
    with watching(satune, run, stop=signal.SIGTERM) as port:
        def finished():
            return cells(f"<x>\n<html><body>{get(port, '/body')[1]}</body></html>", "What the run")["steps finished"]

        assert finished() == ["0"]
        with open(rows, "w") as out:
            for step in range(1, 4):
                out.write(json.dumps({"step": step, "loss": 1.0 / step})[:-4])
                out.flush()
                assert finished() == [str(step - 1)]
                out.write(json.dumps({"step": step, "loss": 1.0 / step})[-4:] + "\n")
                out.flush()
                assert finished() == [str(step)]
        (run / "other").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
        (run / "other").rename(rows)
        assert finished() == ["1"]
        rows.unlink()
        assert finished() == ["0"]
        assert list(run.iterdir()) == []


def test_a_run_that_has_no_folder_yet(satune, tmp_path):
    run = tmp_path / "later" / "run"
    with watching(satune, run) as port:
        told = get(port, "/body")[1]
        assert f"The run has not begun yet: there is no folder {run}." in told and "is not there" not in told
        run.mkdir(parents=True)
        assert "has neither config.json nor metrics.jsonl" in get(port, "/body")[1]
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
        assert tables_of(port, "What the run")["steps finished"] == ["1"]
        assert "not begun" not in get(port, "/body")[1]


def test_what_cannot_be_read_is_told_and_tried_again(satune, synthetic):
    run = synthetic([{"step": 1, "loss": 1.0}])
    rows = run / "metrics.jsonl"
    for name in ("config.json", "samples.jsonl"):
        (run / name).mkdir()
    os.mkfifo(run / "data.json")
    told = ["config.json cannot be read (Is a directory)", "samples.jsonl cannot be read (Is a directory)",
            "data.json cannot be read (Invalid argument)"]
    page = report(satune, run, output=run / "report.html")
    assert all(line in page for line in told)
    with watching(satune, run) as port:
        for _ in range(2):
            answer, body = get(port, "/body")
            assert answer.status == 200 and all(line in body for line in told)
            assert tables_of(port, "What the run")["steps finished"] == ["1"]
        rows.unlink()
        rows.mkdir()
        for _ in range(2):
            assert "metrics.jsonl cannot be read (Is a directory)" in get(port, "/body")[1]
        rows.rmdir()
        rows.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2)))
        assert tables_of(port, "What the run")["steps finished"] == ["2"]


@pytest.mark.parametrize("begin", ["", "x" * 3000])
def test_another_file_of_the_same_inode(satune, synthetic, begin):
    """As a run that was deleted and begun again may get it. With a long first row the two begin alike."""
    def lines(loss, count):
        first = {"step": 1, "loss": 9.0 if begin else loss, "note": begin}
        return [first, *({"step": step, "loss": loss} for step in range(2, count + 1))]

    run = synthetic(lines(3.0, 4))
    rows = run / "metrics.jsonl"
    with watching(satune, run) as port:
        assert tables_of(port, "What the run")["last training loss"] == ["3"]
        inode = rows.stat().st_ino
        rows.write_text("".join(json.dumps(row) + "\n" for row in lines(2.0, 7)))
        assert rows.stat().st_ino == inode
        assert tables_of(port, "What the run")["steps finished"] == ["7"]
        numbers = tables_of(port, "Numbers of the curves")["loss"]
        assert [numbers[1], numbers[4]] == ["7", "2"], "no row of the file before is left"
        assert "are no rows" not in get(port, "/body")[1]


# In a browser


@pytest.fixture(scope="module")
def browser(folder):
    browser = Browser(folder / "profile")
    yield browser
    browser.close()


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


def test_the_live_page_in_a_browser(browser, satune, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    with watching(satune, run, runs[1]) as port:
        opened = browser.open(f"http://127.0.0.1:{port}/")
        steps = "document.querySelector('tbody td').textContent"
        assert opened.evaluate(steps) == "4 of 24"
        opened.wait(lambda: "Live" in opened.evaluate("document.querySelector('[role=status]').textContent"))
        check_page(opened, HEADINGS, figures=16)
        opened.evaluate("scrollTo(0, 500)")
        with open(run / "metrics.jsonl", "a") as out:
            out.write("".join(lines[4:]))
        opened.wait(lambda: opened.evaluate(steps) == "24 of 24", timeout=20)
        assert opened.evaluate("scrollY") == 500
        assert opened.complaints() == []
        assert {url.split(str(port))[1] for url in opened.requested()} == {"/", "/body"}
        plain = browser.open(f"http://127.0.0.1:{port}/", scripts=False)
        assert plain.complaints() == [] and plain.requested() == [f"http://127.0.0.1:{port}/"]
    # Without its server the page stays and says so.
    opened.wait(lambda: "does not answer" in opened.evaluate("document.querySelector('[role=status]').textContent"), timeout=20)
    assert opened.evaluate(steps) == "24 of 24"
