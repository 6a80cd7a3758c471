"""satune compare on reports and item files as satune eval writes them: numbers against NumPy and exact binomials,
thresholds and exit codes, and what it refuses."""

import json
import math
import shutil
import subprocess

import numpy as np
import pytest
from compare_reports import compare, rows, write_report


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
             "perplexity": {"perplexity": math.exp(loss.sum() / tokens.sum()), "loss": loss.sum() / tokens.sum(), "n": 300},
             "quiz": {"acc": hits.mean(), "acc_stderr": 0.02, "n": 300,
                      "categories": {"other": {"acc": hits[50:].mean(), "n": 250}},
                      "subjects": {"anatomy": {"acc": hits[:50].mean(), "acc_stderr": 0.05, "n": 50}}},
             "pairs": {"f1": 0.5, "mcc": 0.5, "n": 300}},
            {"response_loss": [{"loss": l, "tokens": int(t)} for l, t in zip(loss, tokens)],
             "perplexity": [{"loss": l, "tokens": int(t)} for l, t in zip(loss, tokens)],
             "quiz": [{"acc": int(h), "subject": "anatomy" if i < 50 else "virology", "category": "stem" if i < 50 else "other"}
                      for i, h in enumerate(hits)],
             "pairs": [{"gold": i % 2, "log_likelihoods": [0.0, 1.0 if bool(h) == bool(i % 2) else -1.0]}
                       for i, h in enumerate(hits)]}, stale={"quiz": [{"acc": 1}] * 300}, **more)

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
    assert anatomy["b"] == pytest.approx(right_b[:50].mean()) and anatomy["a_stderr"] == 0.05
    assert found["kv_cache_bytes_per_token"]["difference"] == -20
    again = rows(compare(satune, a, b, "--json", "--resamples", 4000))
    assert again == found  # the same seed, the same draws


def confusion(hits):
    """gold of item i is i % 2; the other choice where it is not right."""
    gold = np.arange(300) % 2
    return gold, np.where(hits, gold, 1 - gold)


def f1(gold, chosen):
    return 2 * (gold & chosen).sum() / (gold.sum() + chosen.sum())


def test_metrics_of_metrics_and_parts_are_paired(satune, pair):
    """perplexity, f1, mcc, MMLU's subjects and categories against NumPy's bootstrap over the same items."""
    a, b, tokens, losses, changed, right, right_b = pair
    found = rows(compare(satune, a, b, "--json", "--resamples", 4000))
    rng = np.random.default_rng(1)
    gold, chosen_a = confusion(right)
    chosen_b = confusion(right_b)[1]
    statistics = {
        "perplexity.perplexity": lambda i: np.exp(changed[i].sum() / tokens[i].sum()) - np.exp(losses[i].sum() / tokens[i].sum()),
        "pairs.f1": lambda i: f1(gold[i], chosen_b[i]) - f1(gold[i], chosen_a[i]),
        "pairs.mcc": lambda i: np.corrcoef(gold[i], chosen_b[i])[0, 1] - np.corrcoef(gold[i], chosen_a[i])[0, 1],
        "quiz.subjects.anatomy.acc": lambda i: (right_b[:50].astype(float) - right[:50])[i].mean(),
        "quiz.categories.other.acc": lambda i: (right_b[50:].astype(float) - right[50:])[i].mean()}
    items = {"quiz.subjects.anatomy.acc": 50, "quiz.categories.other.acc": 250}
    for metric, statistic in statistics.items():
        count = items.get(metric, 300)
        draws = [statistic(rng.integers(0, count, count)) for _ in range(4000)]
        assert found[metric]["paired_items"] == count, metric
        assert found[metric]["difference_stderr"] == pytest.approx(np.std(draws, ddof=1), rel=0.06), metric
        low, high = np.quantile(draws, [0.025, 0.975])
        assert found[metric]["difference_95"] == pytest.approx([low, high], abs=0.1 * (high - low)), metric
        assert ("mcnemar_p" in found[metric]) == metric.startswith("quiz"), metric


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


def test_items_without_a_number_are_named(satune, tmp_path):
    task = {"quiz": {"acc": 0.5, "n": 4}}
    a = write_report(tmp_path / "a.json", task, {"quiz": [{"acc": h} for h in (1, 0, 1, 0)]})
    b = write_report(tmp_path / "b.json", task, {"quiz": [{"acc": h} for h in (1, 0, None, 0)]})
    lines = compare(satune, a, b, code=2).stderr.splitlines()
    assert len(lines) == 1 and "b.json: task quiz: item 2: found null under acc" in lines[0], lines


def test_pages_of_wikitext_are_paired(satune, tmp_path):
    """Perplexities over words and bytes: whole pages are drawn, though the items are windows."""
    rng = np.random.default_rng(6)
    pages, windows = 60, [int(w) for w in rng.integers(1, 4, 60)]
    words = rng.integers(20, 400, pages)
    bytes_ = words * rng.integers(4, 7, pages)

    def side(name, rate):
        losses = [[float(r) for r in rate * words[p] / windows[p] * rng.uniform(0.8, 1.2, windows[p])] for p in range(pages)]
        items = [{"page": p, "log_likelihood": -loss, "tokens": 7, "words": int(words[p]), "bytes": int(bytes_[p])}
                 for p in range(pages) for loss in losses[p]]
        total = np.array([sum(each) for each in losses])
        by_word, by_byte = total.sum() / words.sum(), total.sum() / bytes_.sum()
        metrics = {"word_perplexity": math.exp(by_word), "byte_perplexity": math.exp(by_byte), "bits_per_byte": by_byte / math.log(2),
                   "n": pages, "windows": len(items)}
        return write_report(tmp_path / f"{name}.json", {"wikitext": metrics}, {"wikitext": items}), total

    (a, of_a), (b, of_b) = side("a", 2.0), side("b", 2.05)
    found = rows(compare(satune, a, b, "--json", "--resamples", 4000))
    statistics = {"word_perplexity": lambda total, i: np.exp(total[i].sum() / words[i].sum()),
                  "byte_perplexity": lambda total, i: np.exp(total[i].sum() / bytes_[i].sum()),
                  "bits_per_byte": lambda total, i: total[i].sum() / bytes_[i].sum() / math.log(2)}
    for metric, statistic in statistics.items():
        row = found[f"wikitext.{metric}"]
        draws = [statistic(of_b, i) - statistic(of_a, i) for i in (rng.integers(0, pages, pages) for _ in range(4000))]
        assert row["paired_items"] == pages and "mcnemar_p" not in row, metric
        assert row["difference_stderr"] == pytest.approx(np.std(draws, ddof=1), rel=0.06), metric
        low, high = np.quantile(draws, [0.025, 0.975])
        assert row["difference_95"] == pytest.approx([low, high], abs=0.1 * (high - low)), metric
    assert "wikitext.windows" not in found
    # A window that is missing: nothing can be said of the pages.
    lines = (tmp_path / "b.items.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b.items.jsonl").write_text("".join(lines[:-1]))
    assert rows(compare(satune, a, b, "--json"))["wikitext.word_perplexity"]["paired_items"] == 0


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
    same = tmp_path / "same"
    refused = compare(satune, a, b, "--output", same, "--html", f"{tmp_path}/./same", code=2).stderr
    assert "--html: found the file of --output" in refused and not same.exists()
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


def test_fingerprints_of_reports_decide_and_say_what_differs(satune, tmp_path):
    """Reports alone, without items: another file of as many items was compared."""
    whole = {"items": "a" * 64, "data": "b" * 64, "template": "c" * 64, "tokenizer": "d" * 64}

    def report(name, **parts):
        return write_report(tmp_path / f"{name}.json", {"quiz": {"acc": 0.5, "n": 10}}, fingerprints={"quiz": whole | parts})

    first = report("first")
    compare(satune, first, report("same"))
    compare(satune, first, report("longer", data="e" * 64))  # --limit takes the same part of a longer file
    compare(satune, first, write_report(tmp_path / "old.json", {"quiz": {"acc": 0.5, "n": 10}}))
    for name, parts, words, others in (
        ("data", {"items": "0" * 64, "data": "1" * 64}, ["another data file: 111111111111"], ["another t"]),
        ("template", {"items": "0" * 64, "template": None}, ["another template: none instead of cccccccccccc"], ["data file", "another tok"]),
        ("no-template", {"template": None}, ["another template: none instead of cccccccccccc"], ["data file", "another tok"]),
        ("no-tokenizer", {"tokenizer": None}, ["another tokenizer: none instead of dddddddddddd"], ["data file", "another tem"]),
        ("no-data", {"data": None}, ["another data file: none instead of bbbbbbbbbbbb"], ["another t"]),
        ("tokenizer", {"tokenizer": "2" * 64}, ["another tokenizer: 222222222222"], ["data file", "another tem"]),
        ("both", {"items": "0" * 64, "data": "1" * 64, "tokenizer": "2" * 64}, ["another data file", "another tokenizer"], ["another tem"]),
        ("limit", {"items": "0" * 64}, ["other options (--limit"], ["another"]),
    ):
        lines = compare(satune, first, report(name, **parts), code=2).stderr.splitlines()
        assert len(lines) == 1 and f"{name}.json: task quiz" in lines[0], lines
        assert all(word in lines[0] for word in words) and not any(word in lines[0] for word in others), lines
    # The other way round too, and neither has one.
    bare = report("bare", template=None)
    assert "another template: cccccccccccc instead of none" in compare(satune, bare, first, code=2).stderr
    compare(satune, bare, report("as-bare", template=None))


def test_keys_that_are_null_and_reports_that_are_broken(satune, tmp_path):
    quiz = {"quiz": {"acc": 0.5, "n": 10}}
    dense = tmp_path / "dense.json"
    dense.write_text(json.dumps({"tasks": quiz, "sharing": None, "anchor": None, "precision": None}))
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"sweep": [{"tasks": quiz, "sharing": None}, {"tasks": quiz, "sharing": "2"}]}))
    assert f"A {sweep} dense" in compare(satune, sweep).stdout
    compare(satune, dense, sweep)
    broken = tmp_path / "broken.json"
    for key, value in (("sharing", 3), ("fingerprints", []), ("fingerprints", {"quiz": 1}), ("anchor", {})):
        broken.write_text(json.dumps({"tasks": quiz, key: value}))
        assert key in compare(satune, dense, broken, code=2).stderr


def test_run_folders(satune, tmp_path):
    def run(name, losses, evaluation, texts, **more):
        folder = tmp_path / name
        snapshot = folder / "snapshots" / "step-00000003"
        snapshot.mkdir(parents=True)
        with open(folder / "metrics.jsonl", "w") as out:
            for step, loss in enumerate(losses, 1):
                row = {"step": step, "loss": loss, "tokens_per_s": 100.0 + step, "mfu": None, "peak_memory_bytes": 1000 * step, "step_seconds": 2.0} | more
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
    # Nobody measured energy or latency: said, and no threshold can be put on it.
    assert found["device_energy_joules_per_token"]["a"] is None and found["time_to_first_token_s"]["difference"] is None
    table = compare(satune, a, b).stdout.splitlines()
    assert [line.split()[1:4] for line in table if line.split()[:1] == ["device_energy_joules_per_token"]] == [["-", "-", "-"]]
    assert "both sides have" in compare(satune, a, b, "--max-rise", "device_energy_joules_per_token=1", code=2).stderr
    # Three steps of 2 s at 50 W, 101 to 103 tokens a second.
    card = rows(compare(satune, a, run("card", [3.0, 2.0, 1.0], 1.5, texts, device_power_w=50.0), "--json"))
    assert card["device_energy_joules"]["b"] == 300 and card["device_energy_joules"]["a"] is None
    assert card["device_energy_joules_per_token"]["b"] == pytest.approx(300 / 612)
    ranks = run("ranks", [3.0, 2.0, 1.0], 1.5, texts, device_power_w=50.0, sent_reduced_bytes=1)
    assert rows(compare(satune, a, ranks, "--json"))["device_energy_joules_per_token"]["b"] is None
    # A run that went further is no better for it: said above the numbers.
    longer = run("longer", [3.0, 2.0, 1.5, 1.2], 1.4, texts)
    page = tmp_path / "page.html"
    said = "loss at steps 3 and 4"
    assert said in compare(satune, a, longer, "--html", page).stdout and said in page.read_text()
    assert "at steps" not in compare(satune, a, b).stdout
    assert any(said in note for note in json.loads(compare(satune, a, longer, "--json").stdout)["comparisons"][0]["notes"])
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
    # data.json tells it as well, when no snapshot is left. Without both it is said that it is not known.
    shutil.rmtree(other / "snapshots")
    assert "eval data" in compare(satune, first, other, code=2).stderr
    (other / "data.json").unlink()
    assert "B does not tell what data it was trained on" in compare(satune, first, other).stdout


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


def test_the_pareto_front_of_any_metrics(satune, tmp_path):
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"model": "m", "sweep": [
        {"tasks": {"quiz": {"acc": acc, "n": 9}, "perplexity": {"loss": loss, "n": 2}}, "tokens_per_s": speed,
         "kv_cache_bytes_per_token": kv, "sharing": sharing} | ({"energy": 1.0} if sharing == "2" else {})
        for sharing, acc, loss, speed, kv in (("", 0.7, 2.5, 10.0, 100), ("1", 0.6, 2.0, 11.0, 100), ("2", 0.5, 2.2, 12.0, 50))]}))

    def front(*options):
        lines = compare(satune, sweep, *options).stdout.splitlines()
        return [line.split()[1] for line in lines if line.rstrip().endswith(" yes")]

    assert front() == ["1", "2"]  # the first in the order of names: perplexity.loss
    assert front("--pareto", "quiz.acc") == front("--pareto", "acc") == ["dense", "2"]
    assert front("--pareto", "acc", "--pareto", "tokens_per_s") == ["dense", "1", "2"]  # the higher the better
    assert front("--pareto", "acc", "--pareto", "perplexity.loss", "--pareto", "kv_cache_bytes_per_token") == ["dense", "1", "2"]
    told = json.loads(compare(satune, sweep, "--pareto", "acc", "--json").stdout)["pareto"]
    assert told["metrics"] == ["acc", "kv_cache_bytes_per_token"] and told["sides"][0]["values"] == [0.7, 100]
    assert [side["on_front"] for side in told["sides"]] == [True, False, True]
    assert front("--pareto", "acc", "--pareto", "energy") == ["2"]  # the others have not measured it
    done = compare(satune, sweep, "--pareto", "acy", code=2)
    assert "--pareto acy" in done.stderr


def test_better_is_told_by_the_name_of_the_metric_alone(satune, tmp_path):
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"model": "m", "sweep": [
        {"tasks": {"time_questions": {"acc": acc, "n": 9}, "lossless": {"exact_match": acc, "n": 9}}, "sharing": sharing,
         "kv_cache_bytes_saved": saved, "kv_cache_bytes_per_token": 100 - saved}
        for sharing, acc, saved in (("", 0.7, 0), ("1", 0.6, 10), ("2", 0.5, 10))]}))

    def front(*metrics):
        lines = compare(satune, sweep, *(word for metric in metrics for word in ("--pareto", metric))).stdout.splitlines()
        return [line.split()[1] for line in lines if line.rstrip().endswith(" yes")]

    assert front("time_questions.acc") == front("lossless.exact_match") == ["dense", "1"]
    assert front("acc", "kv_cache_bytes_saved") == ["dense", "1"]
    assert front("kv_cache_bytes_saved", "kv_cache_bytes_per_token") == ["1", "2"]


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
    assert found["perplexity.perplexity"]["paired_items"] == found["perplexity.loss"]["paired_items"]
    assert found["kv_cache_bytes_per_token"]["difference"] < 0
    # Without items files the reports themselves know that another text of as many tokens is another.
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("Lily", "Lucy"))
    for name, data in (("first", text), ("second", other)):
        done = subprocess.run([satune, "eval", str(stories), "--task", f"perplexity={data}", "--json"], capture_output=True,
                              text=True, timeout=300)
        (tmp_path / f"{name}.json").write_text(done.stdout)
    compare(satune, tmp_path / "dense.json", tmp_path / "first.json")
    refused = compare(satune, tmp_path / "first.json", tmp_path / "second.json", code=2).stderr
    assert "another data file" in refused and "another tokenizer" not in refused
    compare(satune, tmp_path / "dense.json", tmp_path / "shared.json", "--max-rise", "loss=0.001", code=1)
