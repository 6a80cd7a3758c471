"""`satune eval` over benchmarks as a user runs it: a run that goes on, a sweep, several processes, mistakes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import programs
import pytest
from programs import free_port, refused


@pytest.fixture(scope="module")
def stories(realdata):
    return realdata / "stories260K_hf"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with questions in HellaSwag's and SST-2's formats, and a task file."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "hellaswag").mkdir()
    (folder / "glue" / "SST-2").mkdir(parents=True)
    with open(folder / "hellaswag" / "hellaswag_val.jsonl", "w") as file:
        for i in range(30):
            document = {"activity_label": "Playing", "ctx_a": f"Lily had {i} red balls.", "ctx_b": "she", "label": i % 4,
                        "endings": ["played with them.", "was sad.", f"gave {i} to Tom and his dog.", "slept"]}
            file.write(json.dumps(document) + "\n")
    lines = ["sentence\tlabel"] + [f"the {w} film number {i}\t{i % 2}" for i, w in enumerate(["bad", "good"] * 6)]
    (folder / "glue" / "SST-2" / "dev.tsv").write_text("\n".join(lines) + "\n")
    (folder / "mine.json").write_text(json.dumps({
        "data": "hellaswag/hellaswag_val.jsonl", "prompt": "{ctx_a} {ctx_b}", "choices": "endings", "answer": "label",
        "metrics": ["acc", "acc_norm"]}))
    (folder / "wiki.test.raw").write_text(" \n = Title = \n")
    return folder


def call(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


def evaluate(satune, model, data, *options, out=None, precision="fp32"):
    outputs = ["--output", out] if out else []
    done = call(satune, "eval", model, "--tasks", "hellaswag,glue_sst2", "--data-dir", data, "--precision", precision, "--json",
                *outputs, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def items_of(file):
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    found = {(line["run"], line["item"]): line["result"] for line in lines}
    assert len(found) == len(lines), "an item stands there twice"
    return found


def close(a, b):
    """The order of batches differs, so the last bits of a sum may."""
    assert a.keys() == b.keys()
    for key in a:
        assert a[key]["log_likelihoods"] == pytest.approx(b[key]["log_likelihoods"], abs=2e-4)
        assert a[key]["gold"] == b[key]["gold"]


def test_a_broken_run_goes_on(satune, stories, data, tmp_path):
    whole, _ = evaluate(satune, stories, data, out=tmp_path / "whole.json")
    expected = items_of(tmp_path / "whole.items.jsonl")
    assert len(expected) == 42
    lines = (tmp_path / "whole.items.jsonl").read_text().splitlines(keepends=True)
    marked = json.loads(lines[3])
    marked["result"]["acc"] = 1 - marked["result"]["acc"]  # shows that it is not computed again
    broken = tmp_path / "broken.items.jsonl"
    broken.write_text("".join(lines[:3]) + json.dumps(marked) + "\n" + "".join(lines[4:20]) + lines[20][:30])
    report, log = evaluate(satune, stories, data, out=tmp_path / "broken.json")
    found = items_of(broken)
    assert found[marked["run"], marked["item"]]["acc"] == marked["result"]["acc"]
    close(found, expected)
    assert "19 of 30 items are there already" in log
    n = report["tasks"][marked["run"]]["n"]
    assert abs(report["tasks"][marked["run"]]["acc"] - whole["tasks"][marked["run"]]["acc"]) == pytest.approx(1 / n)

    # Another precision is another model: everything is computed again, and nothing is lost.
    (tmp_path / "broken.json").unlink()
    _, log = evaluate(satune, stories, data, out=tmp_path / "broken.json", precision="bf16")
    assert "there already" not in log and "broken.items.jsonl.old" in log
    assert items_of(tmp_path / "broken.items.jsonl.old") == found
    # Names that differ after a dot are different names.
    _, log = evaluate(satune, stories, data, out=tmp_path / "run-0.5")
    _, log = evaluate(satune, stories, data, out=tmp_path / "run-0.6")
    assert "there already" not in log and len(items_of(tmp_path / "run-0.5.items.jsonl")) == len(expected)


def test_kept_rows_that_are_none_are_named(satune, stories, data, tmp_path):
    report = tmp_path / "out.json"
    evaluate(satune, stories, data, out=report)
    report.unlink()
    items = tmp_path / "out.items.jsonl"
    lines = items.read_text().splitlines()
    row = json.loads(lines[4])
    for change, words in (({"item": "3"}, ["item: found the string", "a whole number"]),
                          ({"tokens": None}, ["tokens: found null"]),
                          ({"result": row["result"] | {"acc": "1"}}, ["result.acc: found the string", "a number"]),
                          ({"result": row["result"] | {"log_likelihoods": [0]}}, ["result.log_likelihoods", "an array"]),
                          ({"result": {}}, ["result.", "found nothing"])):
        items.write_text("\n".join(lines[:4] + [json.dumps(row | change)] + lines[5:]) + "\n")
        done = call(satune, "eval", stories, "--tasks", "hellaswag,glue_sst2", "--data-dir", data, "--precision", "fp32", "--json",
                    "--output", report)
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        assert len(errors) == 1 and all(word in errors[0] for word in [f"{items}: line 5: ", *words]), done.stderr


def test_a_sweep_is_its_plans_one_by_one(satune, stories, data, tmp_path):
    plans = ["none", "3-4", "2-4", "1,4"]
    sweep, _ = evaluate(satune, stories, data, "--sweep", ";".join(plans), out=tmp_path / "sweep.json")
    assert [row["sharing"] for row in sweep["sweep"]] == ["", *plans[1:]]
    for plan, row in zip(plans, sweep["sweep"], strict=True):
        single, _ = evaluate(satune, stories, data, *([] if plan == "none" else ["--sharing", plan]))
        for key in ("tasks", "parameters", "kv_cache_bytes_per_token"):
            assert row[key] == single[key], (plan, key)
    assert json.loads((tmp_path / "sweep.json").read_text()) == sweep
    table = call(satune, "eval", stories, "--tasks", "hellaswag", "--data-dir", data, "--sweep", "none;3-4").stdout
    assert "acc_norm" in table and "none" in table and "3-4" in table


def test_files_are_written_though_nobody_reads_what_is_printed(satune, stories, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time, there was a little girl named Lily. " * 4)
    reports = [tmp_path / "one.json", tmp_path / "other.json"]
    pages = [tmp_path / "compared.json", tmp_path / "compared.html"]
    for command in (*(("eval", stories, "--task", f"perplexity={tmp_path / 'text.txt'}", "--output", report) for report in reports),
                    ("compare", *reports, "--output", pages[0], "--html", pages[1])):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([satune, *map(str, command)], stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
        os.close(write)
        assert done.returncode == 3 and "standard output: cannot be written: Broken pipe" in done.stderr, done
    assert all(json.loads(file.read_text()) for file in (*reports, pages[0])) and pages[1].stat().st_size > 1000


def test_models_that_end_answers_otherwise_are_compared(satune, stories, records, tmp_path):
    """An export ends with what it was trained to, its base with more: the questions are the same."""
    other = shutil.copytree(stories, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps({"q": f"Lily has {i} balls", "a": str(i)}) + "\n" for i in range(3)))
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        shutil.copy(tmp_path / "quiz.jsonl", tmp_path / place / "quiz.jsonl")
    task = {"prompt": "{q}.", "target": "{a}", "max_new_tokens": 4}
    (tmp_path / "quiz.json").write_text(json.dumps(task | {"data": "here/quiz.jsonl"}))
    (tmp_path / "there" / "quiz.json").write_text(json.dumps({"data": "quiz.jsonl"} | task))
    for model, quiz in ((stories, tmp_path / "quiz.json"), (other, tmp_path / "there" / "quiz.json")):
        programs.call(satune, "eval", model, "--task", f"exact_match={records}", "--max-records", 2, "--max-new-tokens", 3, "--task", quiz,
             "--output", tmp_path / f"{quiz.parent.name}.json")
    done = programs.call(satune, "compare", tmp_path / f"{tmp_path.name}.json", tmp_path / "there.json").stdout
    assert "exact_match.exact_match" in done and "quiz.exact_match" in done
    # The same model with other stop ids is another for the results that were kept.
    before = (tmp_path / "there.items.jsonl").read_text()
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    (tmp_path / "there.json").unlink()
    programs.call(satune, "eval", other, "--task", f"exact_match={records}", "--max-records", 2, "--max-new-tokens", 3, "--output",
         tmp_path / "there.json")
    assert (tmp_path / "there.items.jsonl.old").read_text() == before


def test_processes_share_the_items(satune, stories, data, tmp_path):
    alone, _ = evaluate(satune, stories, data, out=tmp_path / "alone.json")
    several, _ = evaluate(satune, stories, data, "--nproc-per-node", 3, "--device", "cpu", out=tmp_path / "several.json")
    for task in alone["tasks"]:
        assert several["tasks"][task] == pytest.approx(alone["tasks"][task])
    close(items_of(tmp_path / "several.items.jsonl"), items_of(tmp_path / "alone.items.jsonl"))
    assert not list(tmp_path.glob("*.rank-*"))


def test_a_failing_rank_is_named(satune, stories, data):
    done = call(satune, "eval", stories, "--tasks", "gsm8k", "--data-dir", data, "--nproc-per-node", 2, "--device", "cpu")
    assert done.returncode == 2
    assert "no data of gsm8k" in done.stderr


def start_rank(rank, port, *command):
    """As srun starts one: nobody watches over it."""
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen([str(part) for part in command], env=os.environ | environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def test_a_rank_that_dies_ends_the_others(satune, stories, tmp_path):
    (tmp_path / "long.txt").write_text("Once upon a time there was a girl. " * 40000)
    port, out = free_port(), tmp_path / "out.json"
    ranks = [start_rank(rank, port, satune, "eval", stories, "--task", f"perplexity={tmp_path / 'long.txt'}", "--output", out,
                        "--device", "cpu") for rank in range(2)]
    try:
        theirs = tmp_path / "out.items.rank-1.jsonl"
        end = time.monotonic() + 60
        while not theirs.exists():
            assert ranks[1].poll() is None and time.monotonic() < end
            time.sleep(0.001)
        ranks[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, log = ranks[0].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 3, log
    assert "rank 1" in log and time.monotonic() - killed < 30
    assert not out.exists()


def test_ranks_that_measure_something_else_are_named(satune, stories, tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}.txt").write_text("Once upon a time" + rank * " there was a girl")
    port = free_port()
    ranks = [start_rank(rank, port, satune, "eval", stories, "--task", f"perplexity={tmp_path / f'{rank}.txt'}", "--device", "cpu")
             for rank in range(2)]
    logs = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], logs
    assert "rank 1 is not set up as rank 0 is: tasks.perplexity: found" in logs[1] and "rank 1" in logs[0]


def test_batches_change_nothing(satune, stories, data, tmp_path):
    evaluate(satune, stories, data, out=tmp_path / "auto.json")
    for size in (1, 7):
        evaluate(satune, stories, data, "--batch-size", size, out=tmp_path / f"{size}.json")
        close(items_of(tmp_path / f"{size}.items.jsonl"), items_of(tmp_path / "auto.items.jsonl"))


def test_a_task_file_runs_like_a_built_in_one(satune, stories, data):
    done = call(satune, "eval", stories, "--task", data / "mine.json", "--limit", 5, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tasks"]["mine"].keys() == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "n"}


def test_files_of_subjects_that_mmlu_does_not_have_are_named(satune, stories, tmp_path):
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    for subject in ("anatomy", "nosubj"):
        (tmp_path / "mmlu" / "test" / f"{subject}_test.csv").write_text("Which?,a,b,c,d,C\n")
    log = call(satune, "eval", stories, "--tasks", "mmlu", "--data-dir", tmp_path).stderr
    assert len([line for line in log.splitlines() if "nosubj_test.csv" in line and "left out" in line]) == 1, log
    assert "anatomy_test.csv" not in log


def stopped(sent, ready, *command):
    """Exit code and stderr of a command that is sent the signal once `ready(process)`."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        end = time.monotonic() + 60
        while not ready(process):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        process.send_signal(sent)
        began = time.monotonic()
        _, log = process.communicate(timeout=60)
        assert time.monotonic() - began < 10
    finally:
        process.kill()
        process.wait()
    return process.returncode, log


def catches(process, sent):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("SigCgt")).split()[1], 16) >> (sent - 1) & 1


def test_a_stopped_run_says_how_it_goes_on(satune, stories, tmp_path):
    (tmp_path / "long.txt").write_text("Once upon a time there was a girl. " * 40000)
    items = tmp_path / "out.items.jsonl"
    command = [satune, "eval", stories, "--task", f"perplexity={tmp_path / 'long.txt'}", "--device", "cpu"]
    told = f"satune: stopped by a signal: the same command goes on from what {items} holds"

    def stopped_with_more(sent, *more):
        def lines():
            return items.read_bytes().count(b"\n") if items.exists() else 0

        before = lines() + 1  # the header
        return stopped(sent, lambda _: lines() > before, *command, "--output", tmp_path / "out.json", *more)

    logs = []
    for sent, *more in ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, "--nproc-per-node", 2)):
        code, log = stopped_with_more(sent, *more)
        assert code == 4 and [line for line in log.splitlines() if "stopped by" in line] == [told], log
        logs.append(log)
    assert "there already" not in logs[0] and all("items are there already" in log for log in logs[1:])
    # Nothing to go on from: the signal itself.
    for more in ([], ["--nproc-per-node", 2]):
        ready = (lambda _: time.sleep(1) or True) if more else (lambda process: catches(process, signal.SIGTERM))
        code, log = stopped(signal.SIGTERM, ready, *command, *more)
        assert code == -signal.SIGTERM and "stopped by a signal: nothing was kept (--output FILE" in log


@pytest.mark.parametrize("arguments, words", [
    (["--tasks", "hellaswg"], ["hellaswg", "did you mean hellaswag"]),
    (["--tasks", "hellaswag"], ["no --data-dir"]),
    (["--tasks", "mmlu", "--data-dir", "{data}"], ["no data of mmlu", "mmlu or MMLU"]),
    (["--tasks", "perplexity", "--data-dir", "{data}"], ["perplexity", "--task perplexity=PATH"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--num-fewshot", "2"], ["no examples", "--num-fewshot 0"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--sweep", "3-4;9"], ["9"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--sweep", "3-4;3,4"], ["twice"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--sweep", "3-4", "--sharing", "3-4"], ["--sweep beside it"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--sweep", "none;"], ['--sweep "none;": found an empty plan, number 2']),
    (["--tasks", ",", "--data-dir", "{data}"], ['--tasks ",": found an empty name']),
    (["--task", "perplexity={data}/wiki.test.raw"], ["wiki.test.raw: found", "in .txt for plain text"]),
    (["--task", "exact_match={data}/records.json", "--max-new-tokens", "600"], ["--max-new-tokens: found 600", "fewer than 512"]),
    (["--task", "{data}/none.json"], ["none.json"]),
    (["--task", "{data}/mine.json", "--task", "{data}/glue/../mine.json"], ["glue/../mine.json", "another file name"]),
    (["--task", "glue_hellaswag={data}/hellaswag"], ["glue_hellaswag", "expected one of"]),
    (["--task", "perplexity={data}/text.txt", "--limit", "3"], ["--limit 3", "--max-records"]),
    (["--task", "perplexity={data}/text.txt", "--num-fewshot", "0"], ["--num-fewshot 0", "no benchmark"]),
    # What no task would read.
    (["--task", "wikitext={data}/text.txt", "--num-fewshot", "2"], ["--num-fewshot 2", "only wikitext"]),
    (["--task", "perplexity={data}/text.txt", "--data-dir", "{data}"], ["--data-dir {data}", "--tasks NAME"]),
    (["--tasks", "{data}/mine.json", "--data-dir", "{data}"], ["--data-dir {data}", "--tasks NAME"]),
    (["--task", "response_loss={data}/records.json", "--stride", "4"], ["--stride 4", "no perplexity"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--stride", "4"], ["--stride 4", "no perplexity"]),
    (["--task", "response_loss={data}/records.json", "--max-new-tokens", "256"], ["--max-new-tokens 256", "no exact_match"]),
    (["--task", "{data}/mine.json", "--max-new-tokens", "3"], ["--max-new-tokens 3", "no exact_match"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--max-records", "3"], ["--max-records 3", "--limit"]),
    (["--task", "{data}/mine.json", "--max-records", "3"], ["--max-records 3", "--limit"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--max-length", "64"], ["--max-length 64", "only benchmarks"]),
    (["--tasks", "hellaswag", "--data-dir", "{data}", "--column", "text=body"], ["--column text=body", "perplexity for text"]),
    (["--task", "perplexity={data}/text.txt", "--column", "input=x"], ["--column input=x", "response_loss or exact_match"]),
    (["--task", "response_loss={data}/records.json", "--column", "text=x"], ["--column text=x", "perplexity for text"]),
    (["--task", "response_los={data}/records.json", "--max-records", "3"], ["response_los", "did you mean response_loss"]),
])
def test_mistakes_are_one_line(satune, stories, data, arguments, words):
    done = call(satune, "eval", stories, *[argument.replace("{data}", str(data)) for argument in arguments])
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word.replace("{data}", str(data)) in done.stderr


def test_examples_that_nobody_asked_for_are_told_as_the_tasks_own(satune, stories, tmp_path):
    (tmp_path / "gsm8k").mkdir()
    row = json.dumps({"question": "How many?", "answer": "Two. #### 2"}) + "\n"
    (tmp_path / "gsm8k" / "test.jsonl").write_text(row)
    command = ["eval", stories, "--tasks", "gsm8k", "--data-dir", tmp_path]
    assert "found no examples for the default --num-fewshot of gsm8k, expected" in refused(satune, *command)
    (tmp_path / "gsm8k" / "train.jsonl").write_text(3 * row)
    assert "error: the default --num-fewshot of gsm8k: found 5 with 3 examples to draw from, expected at least 5" in refused(
        satune, *command)
    assert "error: --num-fewshot: found 4 with 3 examples" in refused(satune, *command, "--num-fewshot", 4)
