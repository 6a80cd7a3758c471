"""satune compare on what satune generate writes: one answer, and files of answers paired prompt by prompt."""

import json
import math
import subprocess

import numpy as np
import pytest
from compare_reports import compare, rows


def test_answers_of_generate(satune, tmp_path):
    def answer(name, prompt, speed):
        path = tmp_path / name
        path.write_text(json.dumps({"prompt": prompt, "text": "x", "tokens": [1, 2], "seconds": 2 / speed, "tokens_per_s": speed,
                                    "time_to_first_token_s": 0.5 / speed, "kv_cache_bytes_per_token": 1000 / speed}))
        return path

    a, b = answer("a.json", "Once", 10.0), answer("b.json", "Once", 8.0)
    assert rows(compare(satune, a, b, "--json"))["kv_cache_bytes_per_token"]["difference"] == 25
    found = rows(compare(satune, a, b, "--json"))
    assert found["time_to_first_token_s"]["a"] == 0.05 and found["time_per_token_s"]["a"] == pytest.approx(0.15)
    compare(satune, a, b, "--max-drop", "tokens_per_s=10%", code=1)
    done = compare(satune, a, answer("c.json", "Twice", 8.0), code=2)
    assert "prompt" in done.stderr and "Twice" in done.stderr


def test_files_of_answers(satune, tmp_path):
    """What generate --prompts writes: means over the answers, differences paired prompt by prompt."""
    rng = np.random.default_rng(5)

    def answers(name, scale, prompts=range(2, 42), kv=256):
        path, rows = tmp_path / name, []
        for number in prompts:
            first, tokens = scale * rng.uniform(0.1, 0.2), int(rng.integers(2, 20))
            seconds = first + scale * rng.uniform(0.9, 1.1) * (tokens - 1)
            rows.append({"number": number, "prompt": f"Question {number}", "text": "x", "tokens": [1] * tokens,
                         "finish_reason": "length", "stop_reason": None, "prompt_tokens": 4, "seconds": seconds,
                         "time_to_first_token_s": first, "tokens_per_s": tokens / seconds, "kv_cache_bytes_per_token": kv,
                         "kv_cache_bytes": kv * (4 + tokens), "kv_cache_bytes_saved": 0})
        path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows) + '{"number":99,"pro')
        return path, rows

    (a, of_a), (b, of_b) = answers("a.jsonl", 1.0), answers("b", 1.3, kv=192)  # whatever the file is called
    found = rows(compare(satune, a, b, "--json", "--resamples", 4000))
    first = found["time_to_first_token_s"]
    one, other = (np.array([row["time_to_first_token_s"] for row in side]) for side in (of_a, of_b))
    assert first["a"] == pytest.approx(one.mean()) and first["b"] == pytest.approx(other.mean())
    assert first["a_stderr"] == pytest.approx(one.std(ddof=1) / math.sqrt(len(one)))
    assert first["paired_items"] == 40 and "mcnemar_p" not in first
    assert first["difference_stderr"] == pytest.approx((other - one).std() / math.sqrt(40), rel=0.06)
    later = [(row["seconds"] - row["time_to_first_token_s"]) / (len(row["tokens"]) - 1) for row in of_b]
    assert found["time_per_token_s"]["b"] == pytest.approx(np.mean(later)) and found["time_per_token_s"]["paired_items"] == 40
    assert found["tokens_per_s"]["a"] == pytest.approx(np.mean([row["tokens_per_s"] for row in of_a]))
    cache = found["kv_cache_bytes_per_token"]  # the same for each answer: no error
    assert cache["difference"] == -64 and cache["a_stderr"] is None and cache["paired_items"] == 0
    assert "number" not in found and "mcnemar_p" not in found["kv_cache_bytes_saved"]
    compare(satune, a, b, "--max-rise", "time_to_first_token_s=10%", code=1)
    compare(satune, a, b, "--max-rise", "time_to_first_token_s=60%")
    for name, change, words in (
        ("fewer", {"prompts": range(2, 41)}, ["no answer to prompt 41", "a.jsonl"]),
        ("more", {"prompts": range(1, 42)}, ["an answer to prompt 1,", "a.jsonl"]),
    ):
        refused = compare(satune, a, answers(name, 1.0, **change)[0], code=2).stderr
        assert name in refused and all(word in refused for word in words), refused
    lines = a.read_text().splitlines(keepends=True)
    for name, text, words in (
        ("other", "".join(lines[:2] + [lines[2].replace("Question 4", "Question five")] + lines[3:]), ["prompt 4", "Question five"]),
        ("twice", "".join(lines[:2] + lines[1:]), ["line 3", "number 3 a second time"]),
        ("nameless", "".join(lines[:2]) + '{"number":8}\n', ["line 3", "no prompt"]),
        ("wrong", lines[0] + '{"number":"8","prompt":"x"}\n', ["line 2", 'number "8"']),
        ("torn", lines[0][:30], ["no complete line"]),
    ):
        (tmp_path / name).write_text(text)
        refused = compare(satune, a, tmp_path / name, code=2).stderr.splitlines()
        assert len(refused) == 1 and all(word in refused[0] for word in [name, *words]), refused


def test_answers_that_generate_writes_are_read(satune, stories, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\n\nThe dog\n")
    for name, options in (("dense", []), ("shared", ["--sharing", "3-4"])):
        done = subprocess.run([satune, "generate", str(stories), "--prompts", str(prompts), "--max-new-tokens", "8", "--output",
                               str(tmp_path / f"{name}.jsonl"), *options], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    found = rows(compare(satune, tmp_path / "dense.jsonl", tmp_path / "shared.jsonl", "--json"))
    assert found["kv_cache_bytes_per_token"]["difference"] < 0
    assert found["time_to_first_token_s"]["paired_items"] == found["time_per_token_s"]["paired_items"] == 2
