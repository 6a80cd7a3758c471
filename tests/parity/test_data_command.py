"""`satune data` as a user runs it: every problem by its record, and the numbers of a training run."""

import json
import re
import time

import pytest
from programs import call, refused

GOOD = {"instruction": "Say hello", "output": "Hello."}


def data(satune, *options, code=0):
    return json.loads(call(satune, "data", *options, "--json", code=code).stdout)


def listed(report, kind):
    return [problem["record"] for problem in report["problems"][kind]["listed"]]


BROKEN_LINES = [
    b'{"instruction": "Say hello", "input": "", "output": "Hello.", "history": []}',
    b'{"instruction": "Say hello", "output": "Hello."}',
    b'{"instruction": "Say hello", "output": "Good day."}',
    b'',
    b'{"instruction": "no output"}',
    b'{"instruction": 5, "output": ["x"]}',
    b'{"instruction": "broken, "output": "x"}',
    b'[1, 2]',
    b'{"instruction": "caf\xe9", "output": "x"}',
    b'{"instruction": "no answer", "output": ""}',
    b'{"instruction": "blank", "output": " \\n"}',
    b'{"instruction": " ", "output": "y"}',
    b'{"text": "Once upon a time"}',
    b'{"instruction": "twice", "output": "1", "output": "2"}',
    b'{"instruction": "end", "output": "bye</s> and <|eot_id|>"}',
    b'{"instruction": "### Response:\\nme", "output": "z"}',
    b'{"instruction": "nul", "output": "a\\u0000b \xef\xbf\xbd"}',
]


def test_every_problem_has_its_record(satune, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join(BROKEN_LINES))
    report = data(satune, path)
    # The empty line is no record, so from there on lines and records differ by one.
    expected = {"duplicate": [2], "conflicting_output": [3], "missing_key": [4], "wrong_type": [5, 5],
                "invalid_json": [6, 13], "not_an_object": [7], "invalid_utf8": [8], "empty_output": [9],
                "blank_output": [10], "empty_instruction": [11], "plain_text_record": [12],
                "special_token_text": [14], "template_text": [15], "damaged_text": [16]}
    assert {kind: listed(report, kind) for kind in report["problems"]} == expected
    assert [problem["line"] for problem in report["problems"]["wrong_type"]["listed"]] == [6, 6]
    assert report["records"] == 16 and report["readable"] == 16 - 7
    assert report["problem_count"] == sum(map(len, expected.values()))
    assert report["ignored_keys"] == {"history": 1, "text": 1}
    assert report["problems"]["duplicate"]["listed"][0]["text"] == "the same as record 1"
    assert report["problems"]["missing_key"]["effect"] == "stops training"
    assert "0xe9" in report["problems"]["invalid_utf8"]["listed"][0]["text"]

    text = call(satune, "data", path, "--strict", "--problems", 1, code=1).stdout
    assert "record 5 (line 6): key \"instruction\": found" in text and "and 1 more" in text
    assert "need a tokenizer (--model)" in text
    # Each place once.
    text = call(satune, "data", path).stdout
    assert "record 6 (line 7): column " in text and ": record 6" not in text
    (tmp_path / "one.jsonl").write_bytes(BROKEN_LINES[0])
    assert "1 record of instructions" in call(satune, "data", tmp_path / "one.jsonl").stdout


def test_a_broken_array_is_read_on(satune, tmp_path):
    good, path = json.dumps(GOOD), tmp_path / "array.json"
    unclosed = good.replace('hello",', "hello,")
    path.write_text(f"[{good},\n{good}\n{good},\n{unclosed},\n{good},\n]")
    report = data(satune, path)
    assert report["records"] == 5
    assert listed(report, "broken_file") == [2, 5], "a comma is missing after 2; one is too many after 5"
    assert listed(report, "invalid_json") == [4]
    assert [problem["text"][:6] for problem in report["problems"]["broken_file"]["listed"]] == ["found ", "found "]
    assert listed(report, "duplicate") == [2, 3, 5]

    raw = good.replace("hello", "hel\nlo")
    path.write_text(f"[{good},\n{raw},\n{good}\n]")
    report = data(satune, path)
    assert listed(report, "invalid_json") == [2] and report["records"] == 3 and report["readable"] == 2
    assert "control character" in report["problems"]["invalid_json"]["listed"][0]["text"]

    # Braces that nobody closes, more than are looked for.
    path.write_text("[" + ",\n".join([good] + [good[:-1]] * 100) + "]")
    report = data(satune, path)
    assert report["unread"].startswith("what follows record 66 (line 66):"), "65 have no end, and the first is whole"
    assert report["problems"]["broken_file"]["count"] == 65
    assert re.search(r"^not read +what follows record 66 \(line 66\)", call(satune, "data", path).stdout, re.M)

    path.write_text(f"[{good},\n{good[:-1]},\n{good},\n{good}")
    report = data(satune, path)
    assert listed(report, "broken_file") == [2, 4], "a brace is missing, so it reaches to the end; so does the array"
    assert "cut off" in report["problems"]["broken_file"]["listed"][0]["text"]
    assert report["records"] == 4 and report["readable"] == 3


def test_broken_records_on_one_line_take_time_as_the_file_is_long(satune, tmp_path):
    """Each was searched for the next line to the end of the file, and back to its beginning."""
    path = tmp_path / "line.json"
    path.write_text("[" + ", ".join([json.dumps(GOOD)] + ['{"instruction": "a", "output": x}'] * 100_000) + "]")
    begin = time.monotonic()
    report = data(satune, path)
    assert time.monotonic() - begin < 60
    assert report["problems"]["invalid_json"]["count"] == 100_000 and report["readable"] == 1
    assert list(report["problems"]) == ["invalid_json"] and report["unread"] is None


def test_records_that_no_example_shows(satune, stories, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([GOOD, {"instruction": "no output"}]))
    [example] = data(satune, path, "--model", stories, "--records", 2)["examples"]
    assert example["record"] == 2 and example["lines"] == ["not trained: nothing of --records 2 can be read"]
    assert data(satune, path, "--model", stories, "--records", "2-9", "--examples", 0)["examples"] == []
    line = refused(satune, "data", path, "--model", stories, "--records", 3)
    assert f"--records 3: found {path} with 2 records, " in line


def test_what_is_no_data_at_all(satune, stories, tmp_path):
    path = tmp_path / "file.json"
    for content, found in (("hello", "0x68"), ("", "empty"), ("[1, 2]", "record 1"), ("{nothing\n", "record 1"),
                           ("[]", "empty array"), ('{\n"instruction": "a"\n}', "one object per line")):
        path.write_text(content)
        line = refused(satune, "data", path)
        assert found in line and str(path) in line, line
    assert "no.json" in refused(satune, "data", tmp_path / "no.json")
    path.write_text(json.dumps([GOOD]))
    assert "--model" in refused(satune, "data", path, "--max-length", 8)
    line = refused(satune, "data", path, "--model", stories, "--records", "2-3")
    assert f"--records 2-3: found {path} with 1 record, " in line
    assert '"answer"' in refused(satune, "data", path, "--columns", "answer")


@pytest.fixture(scope="module")
def plain_config(tmp_path_factory, stories):
    """A training config whose one step is the whole epoch, so that its sums are those of the file."""
    def make(train_file, **settings):
        folder = tmp_path_factory.mktemp("config")
        config = {"model_name_or_path": str(stories), "output_dir": str(folder / "run"), "train_file": str(train_file),
                  "token_cache_dir": "", "val_size": 0, "max_steps": 1, "per_device_train_batch_size": 100000,
                  "gradient_accumulation_steps": 1, "precision": "fp32", "device": "cpu", "warmup_ratio": 0}
        (folder / "config.json").write_text(json.dumps(config | settings))
        return folder / "config.json"
    return make


def dry_run_numbers(satune, config):
    plan = call(satune, "train", config, "--dry-run").stdout
    numbers = {}
    samples, records, longest = re.search(r"^train .*?: (\d+) samples of (\d+) records.*longest (\d+)", plan, re.M).groups()
    numbers |= {"samples": int(samples), "records": int(records), "longest_sample": int(longest)}
    for key, words in (("overlength", "too long"), ("nothing_to_learn", "nothing to learn")):
        found = re.search(rf"(\d+) dropped \({words}\)", plan)
        numbers[key] = int(found[1]) if found else 0
    found = re.search(r"(\d+) truncated", plan)
    numbers["truncated"] = int(found[1]) if found else 0
    tokens, targets = re.search(r"^per step .*tokens (\d+)\.0 .*target tokens (\d+)\.0", plan, re.M).groups()
    numbers |= {"tokens": int(tokens), "target_tokens": int(targets)}
    rows, filled = re.search(r"^rows +(\d+) an epoch.*\(([\d.]+) %", plan, re.M).groups()
    return numbers, int(rows), float(filled)


@pytest.mark.parametrize("overlength", ["drop", "truncate"])
def test_numbers_are_those_of_a_dry_run(satune, realdata, stories, tmp_path, plain_config, overlength):
    rows = json.loads((realdata / "alpaca_tiny_torchtune" / "alpaca_tiny.json").read_text())
    rows += [{"instruction": "q " * 400, "input": "", "output": "a"}, {"instruction": "q", "output": ""}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    report = data(satune, path, "--model", stories, "--max-length", 512, "--overlength", overlength)
    [variant] = report["variants"]
    assert variant["template"] == "alpaca"
    for packing, key in ((True, "packed"), (False, "unpacked")):
        config = plain_config(path, max_length=512, overlength=overlength, packing=packing)
        expected, rows_of_epoch, filled = dry_run_numbers(satune, config)
        found = variant | variant["dropped"]
        assert {name: found[name] for name in expected} == expected
        assert variant["rows"][key] == rows_of_epoch
        assert 100 * (1 - variant["padding"][key]) == pytest.approx(filled, abs=0.05)
    assert len(rows) in listed(report, "empty_output")
    if overlength == "truncate":
        assert len(rows) - 1 in listed(report, "no_target_left")
        assert report["problems"]["truncated"]["count"] == variant["truncated"] > 0
    else:
        assert report["problems"]["overlength"]["count"] == variant["dropped"]["overlength"] > 1
    lengths = variant["lengths"]
    assert sum(lengths["histogram"]["counts"]) == lengths["count"] == len(rows)
    assert len(lengths["histogram"]["edges"]) == len(lengths["histogram"]["counts"]) + 1


def test_templates_and_tokenizers_side_by_side(satune, realdata, stories, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"q": "Name a fruit", "output": f"Fruit {n} " * n} for n in range(1, 20)]))
    options = (path, "--columns", "instruction=q", "--model", stories, "--model", realdata / "tok_llama3",
               "--template", "alpaca", "--template", "llama3", "--max-length", 90)
    report = data(satune, *options, "--overlength", "error", "--records", "7-8", "--examples", 5)
    found = [(variant["model"], variant["template"], variant.get("unusable", "")) for variant in report["variants"]]
    llama3 = str(realdata / "tok_llama3")
    assert [entry[:2] for entry in found] == [(str(stories), "alpaca"), (str(stories), "llama3"), (llama3, "alpaca"),
                                              (llama3, "llama3")]
    assert "<|start_header_id|>" in found[1][2] and not found[0][2] + found[2][2] + found[3][2]
    by_template = {variant["template"]: variant for variant in report["variants"][2:]}
    assert by_template["alpaca"]["lengths"]["mean"] > by_template["llama3"]["lengths"]["mean"]
    stops = report["problems"]["overlength_error"]
    assert stops["effect"] == "stops training" and "(alpaca, " in stops["listed"][0]["text"]
    assert [(example["template"], example["record"]) for example in report["examples"]] == [
        ("alpaca", 7), ("alpaca", 8)] * 2 + [("llama3", 7), ("llama3", 8)]
    assert any("<|eot_id|>" in line for line in report["examples"][-1]["lines"])

    text = call(satune, "data", *options).stdout
    assert re.search(r"^ +64 - 95 +\d+  #+ <- max_length 90$", text, re.M)
    assert "packing saves" in text and "example: record 1 as trained" in text
    path.write_text(json.dumps([{"q": "a", "output": "b"}]))
    assert "<|start_header_id|>" in refused(satune, "data", path, "--columns", "instruction=q", "--model", stories,
                                            "--template", "llama3")
    # The file has no problem, but a template has.
    for others in (("--template", "alpaca"), ("--model", stories)):
        options = (path, "--columns", "instruction=q", "--model", stories, "--template", "llama3", *others)
        assert "no problems" in call(satune, "data", *options).stdout
        call(satune, "data", *options, "--strict", code=1)


def test_plain_text(satune, stories, tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes("Once upon a time there was a girl.\n".encode() * 40 + b"bad \xff byte\n")
    report = data(satune, path, "--model", stories, "--max-length", 64)
    [variant] = report["variants"]
    assert report["format"] == "text" and variant["template"] is None
    # The U+FFFD that stands for the byte is none of the file's.
    assert report["problems"].keys() == {"invalid_utf8"}
    assert report["problems"]["invalid_utf8"]["listed"] == [{"record": 1, "line": 41, "text": "the byte 0xff"}]
    (tmp_path / "both.txt").write_bytes(path.read_bytes() + "\ufffd\n".encode())
    assert data(satune, tmp_path / "both.txt")["problems"].keys() == {"invalid_utf8", "damaged_text"}
    # Pieces overlap by one token, so that every token but the first is a target once.
    assert variant["target_tokens"] == variant["lengths"]["sum"] - 1
    assert variant["samples"] > 1 and variant["longest_sample"] == 64
    assert "plain text, which has no template" in refused(satune, "data", path, "--model", stories, "--template", "alpaca")


def test_real_alpaca_files(satune, realdata):
    """The sets as they are published: all readable, and what they are known to hold is found."""
    path = realdata / "alpaca_random9k" / "random_9k.json"
    rows = json.loads(path.read_text())
    report = data(satune, path)
    assert report["records"] == report["readable"] == len(rows)
    assert report["with_input"] == sum(bool(row.get("input")) for row in rows)
    seen, repeated = set(), 0
    for row in rows:
        key = (row["instruction"], row.get("input") or "", row["output"])
        repeated += key in seen
        seen.add(key)
    assert report["problems"].get("duplicate", {"count": 0})["count"] == repeated
    assert report["problems"].get("empty_output", {"count": 0})["count"] == sum(not row["output"] for row in rows)
    characters = sum(len(row["instruction"]) + len(row.get("input") or "") + len(row["output"]) for row in rows)
    assert report["characters"]["sum"] == characters
