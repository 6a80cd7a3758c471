"""satune compare on reports and item files as satune eval writes them: numbers against NumPy and exact binomials,
thresholds and exit codes, and what it refuses."""

import json
import math
import subprocess

import numpy as np
import pytest


def compare(program, *arguments, code=0):
    done = subprocess.run([program, "compare", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def rows(done):
    return {row["metric"]: row for row in json.loads(done.stdout)["comparisons"][0]["metrics"]}


def write_report(path, tasks, items=None, fingerprints=None, sharing="", stale=None, **measurements):
    """`items`: {task: [result, ...]}; `stale`: those of an earlier run on other data, left in the file."""
    report = {"model": path.stem, "tasks": tasks, "seconds": 2.0, "sharing": sharing, "anchor": "before" if sharing else "",
              **measurements}
    if items is not None:
        file = path.with_suffix(".items.jsonl")
        with open(file, "w") as out:
            out.write(json.dumps({"satune_items": 1, "model": "m"}) + "\n")
            for task, results, data in [(task, results, "older") for task, results in (stale or {}).items()] + [
                    (task, results, (fingerprints or {}).get(task, "same")) for task, results in items.items()]:
                run = f"{task} @ {sharing} before" if sharing else task
                for item, result in enumerate(results):
                    out.write(json.dumps({"run": run, "task": data, "item": item, "tokens": 5, "result": result}) + "\n")
        report["items"] = file.name
    path.write_text(json.dumps(report))
    return path


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 40, 300)
    losses = tokens * rng.uniform(0.5, 3, 300)
    changed = losses + tokens * rng.normal(0.05, 0.2, 300)
    right = rng.random(300) < 0.7
    right_b = np.where(rng.random(300) < 0.1, ~right, right)

    def side(name, loss, hits, **more):
        return write_report(
            tmp_path / f"{name}.json",
            {"response_loss": {"loss": loss.sum() / tokens.sum(), "loss_stderr": 0.01, "tokens": int(tokens.sum()), "n": 300},
             "quiz": {"acc": hits.mean(), "acc_stderr": 0.02, "n": 300,
                      "subjects": {"anatomy": {"acc": hits[:50].mean(), "acc_stderr": 0.05, "n": 50}}}},
            {"response_loss": [{"loss": l, "tokens": int(t)} for l, t in zip(loss, tokens)],
             "quiz": [{"acc": int(h)} for h in hits]}, stale={"quiz": [{"acc": 1}] * 300}, **more)

    a = side("a", losses, right, kv_cache_bytes_per_token=100)
    b = side("b", changed, right_b, kv_cache_bytes_per_token=80, sharing="2-3")
    return a, b, tokens, losses, changed, right, right_b


def test_differences_errors_and_tests_are_those_of_numpy(satune, pair):
    a, b, tokens, losses, changed, right, right_b = pair
    found = rows(compare(satune, a, b, "--json", "--resamples", 4000))
    loss = found["response_loss.loss"]
    expected = (changed.sum() - losses.sum()) / tokens.sum()
    assert loss["difference"] == pytest.approx(expected, abs=1e-12) and loss["paired_items"] == 300
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(4000):
        chosen = rng.integers(0, 300, 300)
        draws.append((changed[chosen].sum() - losses[chosen].sum()) / tokens[chosen].sum())
    assert loss["difference_stderr"] == pytest.approx(np.std(draws, ddof=1), rel=0.05)
    low, high = np.quantile(draws, [0.025, 0.975])
    width = high - low
    assert loss["difference_95"] == pytest.approx([low, high], abs=0.06 * width)
    assert "mcnemar_p" not in loss

    quiz = found["quiz.acc"]
    only_a, only_b = int((right & ~right_b).sum()), int((right_b & ~right).sum())
    n = only_a + only_b
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)
    assert quiz["mcnemar_p"] == pytest.approx(p, rel=1e-9) and 0 < p < 1
    assert quiz["a_stderr"] == 0.02
    anatomy = found["quiz.subjects.anatomy.acc"]
    assert anatomy["b"] == pytest.approx(right_b[:50].mean()) and anatomy["a_stderr"] == 0.05 and anatomy["paired_items"] == 0
    assert found["kv_cache_bytes_per_token"]["difference"] == -20
    again = rows(compare(satune, a, b, "--json", "--resamples", 4000))
    assert again == found  # the same seed, the same draws


def test_mcnemar_of_equal_and_of_many(satune, tmp_path):
    hits = [1, 0] * 20
    a = write_report(tmp_path / "a.json", {"quiz": {"acc": 0.5, "n": 40}}, {"quiz": [{"acc": h} for h in hits]})
    b = write_report(tmp_path / "b.json", {"quiz": {"acc": 0.5, "n": 40}}, {"quiz": [{"acc": h} for h in hits]})
    assert rows(compare(satune, a, b, "--json"))["quiz.acc"]["mcnemar_p"] == 1
    c = write_report(tmp_path / "c.json", {"quiz": {"acc": 1.0, "n": 40}}, {"quiz": [{"acc": 1}] * 40})
    assert rows(compare(satune, a, c, "--json"))["quiz.acc"]["mcnemar_p"] == pytest.approx(2 / 2**20)


def test_thresholds_decide_the_exit_code(satune, tmp_path):
    a = write_report(tmp_path / "a.json", {"quiz": {"acc": 0.50, "n": 10}, "exam": {"acc": 0.8, "n": 10}}, tokens_per_s=100.0)
    b = write_report(tmp_path / "b.json", {"quiz": {"acc": 0.48, "n": 10}, "exam": {"acc": 0.9, "n": 10}}, tokens_per_s=90.0)
    compare(satune, a, b)
    compare(satune, a, b, "--max-drop", "acc=0.021", "--max-drop", "tokens_per_s=10%")
    done = compare(satune, a, b, "--max-drop", "acc=0.01", code=1)
    assert "quiz.acc is beyond --max-drop acc=0.01" in done.stdout and "exam.acc is" not in done.stdout
    compare(satune, a, b, "--max-drop", "exam.acc=0")
    compare(satune, a, b, "--max-drop", "quiz.acc=3.9%", code=1)
    compare(satune, a, b, "--max-drop", "quiz.acc=4.1%")
    compare(satune, a, b, "--max-rise", "exam.acc=0.05", code=1)
    compare(satune, a, b, "--max-drop", "tokens_per_s=9%", code=1)
    report = json.loads(compare(satune, a, b, "--max-drop", "acc=0.01", "--json", code=1).stdout)
    assert report["comparisons"][0]["regressions"] == [{"metric": "quiz.acc", "threshold": "--max-drop acc=0.01"}]
    # A value that is no number is beyond every threshold.
    c = write_report(tmp_path / "c.json", {"quiz": {"acc": None, "n": 10}, "exam": {"acc": 0.9, "n": 10}})
    compare(satune, a, c, "--max-drop", "acc=1", code=1)


def test_answers_of_generate(satune, tmp_path):
    def answer(name, prompt, speed):
        path = tmp_path / name
        path.write_text(json.dumps({"prompt": prompt, "text": "x", "tokens": [1, 2], "seconds": 2 / speed, "tokens_per_s": speed,
                                    "kv_cache_bytes_per_token": 1000 / speed}))
        return path

    a, b = answer("a.json", "Once", 10.0), answer("b.json", "Once", 8.0)
    assert rows(compare(satune, a, b, "--json"))["kv_cache_bytes_per_token"]["difference"] == 25
    compare(satune, a, b, "--max-drop", "tokens_per_s=10%", code=1)
    done = compare(satune, a, answer("c.json", "Twice", 8.0), code=2)
    assert "prompt" in done.stderr and "Twice" in done.stderr


def test_what_cannot_be_compared_is_refused(satune, pair, tmp_path):
    a, b = pair[:2]
    right = pair[5]
    other = write_report(tmp_path / "other.json", {"quiz": {"acc": 0.5, "n": 300}}, {"quiz": [{"acc": int(h)} for h in right]},
                         fingerprints={"quiz": "another"})
    more = write_report(tmp_path / "more.json", {"quiz": {"acc": 0.5, "n": 299}})
    nothing = write_report(tmp_path / "nothing.json", {"exam": {"acc": 0.5, "n": 3}})
    gone = tmp_path / "gone.json"
    gone.write_text(json.dumps(json.loads(a.read_text()) | {"items": "gone.items.jsonl"}))
    broken = tmp_path / "broken.json"
    broken.write_text("[1]")
    for arguments, words in (
        ([a, other], ["other.json", "quiz", "another", "data, template and tokenizer"]),
        ([a, more], ["more.json", "quiz", "n 299", "300"]),
        ([a, nothing], ["nothing.json", "no task"]),
        ([a, gone], ["gone.items.jsonl"]),
        ([a, broken], ["broken.json"]),
        ([a, tmp_path / "none.json"], ["none.json"]),
        ([a, tmp_path], ["metrics.jsonl"]),
        ([a], ["a.json", "another"]),
        ([a, b, "--max-drop", "acc"], ["--max-drop", "acc"]),
        ([a, b, "--max-drop", "acc=-1"], ["--max-drop", "acc=-1"]),
        ([a, b, "--max-rise", "loss=1x"], ["--max-rise", "loss=1x"]),
        ([a, b, "--max-drop", "quiz.ac=0.1"], ["quiz.ac=0.1", "did you mean quiz.acc?"]),
        ([a, b, "--output", a], ["--output", "existing"]),
    ):
        done = compare(satune, *arguments, code=2)
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and all(word in lines[0] for word in words), (words, lines)


def test_run_folders(satune, tmp_path):
    def run(name, losses, evaluation, texts):
        folder = tmp_path / name
        snapshot = folder / "snapshots" / "step-00000003"
        snapshot.mkdir(parents=True)
        with open(folder / "metrics.jsonl", "w") as out:
            for step, loss in enumerate(losses, 1):
                row = {"step": step, "loss": loss, "tokens_per_s": 100.0 + step, "mfu": None, "peak_memory_bytes": 1000 * step}
                out.write(json.dumps(row | ({"eval_loss": evaluation} if step == len(losses) else {})) + "\n")
            out.write('{"step": 4, "lo')  # a line that was cut off
        (folder / "config.json").write_text(json.dumps({"sharing": {"layers": "2-3", "anchor": "before"}}))
        (snapshot / "state.json").write_text(json.dumps({"texts": texts}))
        (snapshot / "MANIFEST.json").write_text("{}")
        return folder

    texts = {"train": "f" * 64, "eval": "d" * 64}
    a, b = run("a", [3.0, 2.0, 1.0], 1.5, texts), run("b", [3.0, 2.5, 1.25], 1.6, texts)
    found = rows(compare(satune, a, b, "--json"))
    assert found["training.loss"]["difference"] == 0.25
    assert found["training.eval_loss"]["difference"] == pytest.approx(0.1)
    assert found["tokens_per_s"]["a"] == 102 and found["peak_memory_bytes"]["b"] == 3000
    compare(satune, a, b, "--max-rise", "eval_loss=0.05", code=1)
    compare(satune, a, b, "--max-rise", "eval_loss=7%")
    compare(satune, a, b, "--max-rise", "eval_loss=0.1")  # exactly as much, but for the last bit of 1.6 - 1.5
    for use in texts:
        done = compare(satune, a, run(f"other-{use}", [3.0, 2.0, 1.0], 1.5, texts | {use: "e" * 64}), code=2)
        assert f"{use} data" in done.stderr
    # One that has diverged is beyond every threshold, whatever it had before.
    diverged = run("diverged", [1.0, 1.0, None], None, texts)
    compare(satune, a, diverged, "--max-rise", "loss=100", code=1)
    compare(satune, a, diverged, "--max-rise", "eval_loss=100", code=1)


def test_runs_of_other_seeds_are_compared_and_other_texts_refused(satune, stories, tmp_path):
    def text(name, word):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(f"Once there was a {word} in house {i}." for i in range(40)))
        return path

    def run(name, seed, train, held_out):
        folder = tmp_path / name
        done = subprocess.run([satune, "train", str(tmp_path / "config.json"), f"output_dir={folder}", f"seed={seed}",
                               f"train_file={train}", f"eval_file={held_out}"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return folder

    (tmp_path / "config.json").write_text(json.dumps({
        "model_name_or_path": str(stories), "max_length": 64, "max_steps": 2, "warmup_steps": 0, "precision": "fp32",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "device": "cpu", "export_at_end": False,
        "learning_rate": 1e-3}))
    train, held_out = text("train", "cat"), text("held_out", "dog")
    first, second = run("first", 1, train, held_out), run("second", 2, train, held_out)
    assert "training.eval_loss" in rows(compare(satune, first, second, "--json"))
    other = run("other", 1, train, text("else", "bird"))
    assert "eval data" in compare(satune, first, other, code=2).stderr


def test_a_sweep_and_its_pareto_front(satune, tmp_path):
    sweep = tmp_path / "sweep.json"
    plans = [("", 2.0, 100), ("3", 2.1, 90), ("2-3", 2.05, 80), ("1-3", 2.6, 70)]
    sweep.write_text(json.dumps({"model": "m", "sweep": [
        {"tasks": {"perplexity": {"loss": loss, "perplexity": math.exp(loss), "tokens": 50, "n": 2}}, "seconds": 1.0,
         "kv_cache_bytes_per_token": kv, "sharing": sharing, "anchor": "before" if sharing else ""}
        for sharing, loss, kv in plans]}))
    done = compare(satune, sweep, "--html", tmp_path / "page.html", "--output", tmp_path / "out.json")
    front = [line.split()[1] for line in done.stdout.splitlines() if line.rstrip().endswith("yes")]
    assert front == ["dense", "2-3", "1-3"]  # 3 costs more and is worse than 2-3
    assert len(json.loads((tmp_path / "out.json").read_text())["comparisons"]) == 3
    page = (tmp_path / "page.html").read_text()
    assert "Pareto" in page and "<script" not in page and "http" not in page
    compare(satune, sweep, "--max-rise", "loss=0.5", code=1)


def test_reports_of_eval_are_read(satune, stories, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
    for name, options in (("dense", []), ("shared", ["--sharing", "3-4"])):
        done = subprocess.run([satune, "eval", str(stories), "--task", f"perplexity={text}", "--output",
                               str(tmp_path / f"{name}.json"), *options], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    found = rows(compare(satune, tmp_path / "dense.json", tmp_path / "shared.json", "--json"))
    assert found["perplexity.loss"]["difference"] > 0.01
    assert found["perplexity.loss"]["paired_items"] > 0
    assert found["kv_cache_bytes_per_token"]["difference"] < 0
    compare(satune, tmp_path / "dense.json", tmp_path / "shared.json", "--max-rise", "loss=0.001", code=1)
