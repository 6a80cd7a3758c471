"""Benchmarks against lm-eval 0.4.13 on the same model and the same files: every log-likelihood, every choice whose
two best are clearly apart, every generated answer, the metrics and their standard errors.

lm-eval's answers are those that record_lm_eval.py has kept; where lm-eval is installed, also those it gives now.
"""

import json
import subprocess

import pytest
from lm_eval_data import ANSWERS, FOLDER, LIMIT, QUESTIONS, RECORD, SUBJECTS, Questions

TOLERANCE = 1e-3
CLEAR = 2e-3  # two best that differ by more are ranked the same by both


class Bench(Questions):
    def __init__(self, folder, realdata, satune, live):
        super().__init__(folder, realdata)
        self.satune = satune
        self.lm_eval = self.ask_lm_eval(QUESTIONS) if live else json.loads(RECORD.read_text())

    def run_satune(self, name, tasks, *options):
        report = self.folder / f"{name}.json"
        paths = self.real_ours if name.startswith("real") else self.ours
        arguments = [word for task in tasks for word in ("--task", f"{task}={paths[task]}")]
        model = self.model_of(tasks[0])
        done = subprocess.run([self.satune, "eval", model, *arguments, "--precision", "fp32", "--limit", str(LIMIT),
                               "--output", report, *map(str, options)], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        items = {}
        for line in report.with_suffix(".items.jsonl").read_text().splitlines()[1:]:
            line = json.loads(line)
            items.setdefault(line["run"], {})[line["item"]] = line["result"]
        return json.loads(report.read_text())["tasks"], items


@pytest.fixture(scope="module", params=["recorded", "live"])
def bench(request, tmp_path_factory, realdata, satune):
    live = request.param == "live"
    if live and not FOLDER.exists():
        pytest.skip(f"lm-eval is not at {FOLDER} (set SATUNE_LM_EVAL)")
    return Bench(tmp_path_factory.mktemp("lm_eval"), realdata, satune, live)


def compare_choices(name, items, expected_items):
    """Log-likelihoods of every choice; returns how many there were."""
    assert len(items) == len(expected_items) > 0
    compared = 0
    for index, expected in enumerate(expected_items):
        found = items[index]
        assert found["log_likelihoods"] == pytest.approx(expected, abs=TOLERANCE), (name, index)
        ranked = sorted(expected, reverse=True)
        if ranked[0] - ranked[1] > CLEAR:
            ours = max(range(len(expected)), key=found["log_likelihoods"].__getitem__)
            assert ours == expected.index(ranked[0]), (name, index)
        compared += len(expected)
    return compared


def compare_metric(found, expected, metric):
    assert found[metric] == pytest.approx(expected[f"{metric},none"], abs=1e-9), metric
    if metric in ("acc", "acc_norm"):
        assert found[f"{metric}_stderr"] == pytest.approx(expected[f"{metric}_stderr,none"], abs=1e-9)


@pytest.mark.parametrize("call", ["choices0", "choices3", "real0"])
def test_choices(bench, call, capsys):
    if call not in bench.lm_eval:
        pytest.skip("answers about rows of the real files are not kept")
    names, shots = QUESTIONS[call]
    tasks = [name if name == "hellaswag" else f"glue_{name}" for name in names]
    theirs = bench.lm_eval[call]
    reports, items = bench.run_satune(call, tasks, "--num-fewshot", shots)
    metrics = {"hellaswag": ["acc", "acc_norm"], "glue_cola": ["mcc"], "glue_mrpc": ["acc", "f1"],
               "glue_qqp": ["acc", "f1"]}
    compared = 0
    for task in tasks:
        expected = theirs[task.removeprefix("glue_")]
        compared += compare_choices(task, items[task], expected["items"])
        for metric in metrics.get(task, ["acc"]):
            compare_metric(reports[task], expected["metrics"], metric)
    with capsys.disabled():
        print(f"\n{compared} log-likelihoods of {len(tasks)} tasks with {shots} examples agree with lm-eval's")


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu(bench, shots):
    theirs = bench.lm_eval[f"mmlu{shots}"]
    reports, items = bench.run_satune(f"mmlu{shots}", ["mmlu"], "--num-fewshot", shots)
    # Items stand in the order of the subjects.
    first = 0
    for subject in sorted(SUBJECTS):
        expected = theirs[f"mmlu_{subject}"]
        here = {index: items["mmlu"][first + index] for index in range(LIMIT)}
        compare_choices(subject, here, expected["items"])
        compare_metric(reports["mmlu"]["subjects"][subject], expected["metrics"], "acc")
        first += LIMIT
    mean = sum(theirs[f"mmlu_{subject}"]["metrics"]["acc,none"] for subject in SUBJECTS) / len(SUBJECTS)
    assert reports["mmlu"]["acc"] == pytest.approx(mean)
    assert reports["mmlu"]["categories"]["stem"]["n"] == 2 * LIMIT


@pytest.mark.parametrize("together", [1, 3])
def test_gsm8k(bench, together):
    expected = bench.lm_eval["gsm8k"]["gsm8k"]
    reports, items = bench.run_satune(f"gsm8k{together}", ["gsm8k"], "--batch-size", together)
    assert reports["gsm8k"]["n"] == len(ANSWERS)
    for index, text in enumerate(expected["items"]):
        assert items["gsm8k"][index]["text"].strip() == text.strip()
    assert 0 < reports["gsm8k"]["exact_match"] < reports["gsm8k"]["exact_match_flexible"] < 1
    assert reports["gsm8k"]["exact_match"] == expected["metrics"]["exact_match,strict-match"]
    assert reports["gsm8k"]["exact_match_flexible"] == expected["metrics"]["exact_match,flexible-extract"]


def test_wikitext(bench):
    expected = bench.lm_eval["wikitext"]["wikitext"]
    reports, items = bench.run_satune("wikitext", ["wikitext"])
    pages = [0.0] * len(expected["items"])
    for window in items["wikitext"].values():
        pages[window["page"]] += window["log_likelihood"]
    assert len(items["wikitext"]) > len(pages) == reports["wikitext"]["n"] >= 3  # longer pages than the model reads
    for found, [page] in zip(pages, expected["items"], strict=True):
        assert found == pytest.approx(page, abs=TOLERANCE, rel=2e-6)  # lm-eval adds thousands of fp32 terms in fp32
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert reports["wikitext"][metric] == pytest.approx(expected["metrics"][f"{metric},none"], rel=1e-5)
        assert reports["wikitext"][f"{metric}_stderr"] > 0
