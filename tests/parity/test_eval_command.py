"""`satune eval` as a user runs it."""

import json
import math
import os
import pathlib

import make_models
import pytest
import torch
from programs import call, refused
from safetensors import safe_open
from safetensors.torch import save_file
from sparse_model import write_sparse_model
from transformers import AutoModelForCausalLM


def nll(model, tokens):
    """-log p of tokens[1:], each."""
    logits = model(torch.tensor([tokens])).logits[0].double()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none")


def test_eval_equals_the_definitions(satune, stories, tmp_path, records):
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32, local_files_only=True).eval()
    text = tmp_path / "text.txt"
    text.write_text(make_models.STORY * 4)
    out = tmp_path / "report.json"
    tasks = ["--task", f"perplexity={text}", "--task", f"response_loss={records}", "--task", f"exact_match={records}"]
    call(satune, "eval", stories, *tasks, "--max-length", 256, "--max-new-tokens", 4, "--output", out)
    report = json.loads(out.read_text())

    with torch.no_grad():
        ids = [1] + tokenizer.encode(make_models.STORY * 4)
        windows = [nll(model, ids[begin : begin + 257]) for begin in range(0, len(ids) - 1, 256)]
        # lm-eval's last window is moved back to full length; only its new tokens count.
        rest = (len(ids) - 1) % 256
        if rest and len(windows) > 1:
            windows[-1] = nll(model, ids[-257:])[-rest:]
        expected = torch.cat(windows)
    assert report["tasks"]["perplexity"]["tokens"] == len(ids) - 1 == len(expected)
    assert report["tasks"]["perplexity"]["loss"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert report["tasks"]["perplexity"]["perplexity"] == pytest.approx(math.exp(expected.mean().item()), rel=1e-4)

    total, count = 0.0, 0
    for row in json.loads(records.read_text()):
        prompt = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            f"Write a response that appropriately completes the request.\n\n### Instruction:\n{row['instruction']}\n\n"
            f"### Input:\n{row['input']}\n\n### Response:\n"
            if row["input"]
            else "Below is an instruction that describes a task. Write a response that appropriately completes the "
            f"request.\n\n### Instruction:\n{row['instruction']}\n\n### Response:\n"
        )
        prompt_ids = [1] + tokenizer.encode(prompt)
        response = tokenizer.encode(row["output"]) + [2]
        with torch.no_grad():
            total += nll(model, prompt_ids + response)[len(prompt_ids) - 1 :].sum().item()
        count += len(response)
    assert report["tasks"]["response_loss"]["tokens"] == count
    assert report["tasks"]["response_loss"]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert report["tasks"]["response_loss"]["n"] == 7
    assert report["tasks"]["exact_match"]["n"] == 7
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    for key in ("seconds", "tokens_per_s", "peak_memory_bytes", "kv_cache_bytes_per_token"):
        assert report[key] > 0
    assert report["model"] == str(stories)


def test_sharing_on_a_dense_checkpoint_is_that_of_share(satune, stories, tmp_path, records):
    call(satune, "share", stories, tmp_path / "shared", "--sharing", "3-4")
    task = ["--task", f"response_loss={records}", "--json"]
    direct = json.loads(call(satune, "eval", stories, *task, "--sharing", "3-4").stdout)
    exported = json.loads(call(satune, "eval", tmp_path / "shared", *task).stdout)
    dense = json.loads(call(satune, "eval", stories, *task).stdout)
    first = json.loads(call(satune, "eval", stories, *task, "--sharing", "3-4", "--anchor", "first").stdout)
    assert direct["tasks"] == exported["tasks"]
    losses = [report["tasks"]["response_loss"]["loss"] for report in (dense, direct, first)]
    assert len(set(losses)) == 3
    assert dense["kv_cache_bytes_per_token"] - direct["kv_cache_bytes_per_token"] == 2 * 4 * 8 * 4
    assert dense["parameters"] - direct["parameters"] == 2 * (64 * 64 + 64 * 32)


def test_bf16_is_near_fp32(satune, stories, records):
    def loss(precision):
        report = json.loads(call(satune, "eval", stories, "--task", f"response_loss={records}", "--precision", precision, "--json").stdout)
        return report["tasks"]["response_loss"]["loss"]

    assert loss("bf16") != loss("fp32")
    assert loss("bf16") == pytest.approx(loss("fp32"), rel=0.02)


def test_the_same_task_twice_has_two_keys(satune, stories, tmp_path, records):
    other = tmp_path / "other.json"
    other.write_text(records.read_text())
    tasks = ["--task", f"response_loss={records}", "--task", f"response_loss={other}"]
    report = json.loads(call(satune, "eval", stories, *tasks, "--json").stdout)
    assert list(report["tasks"]) == ["response_loss", "response_loss:other.json"]
    assert "response_loss:other.json" in call(satune, "eval", stories, *tasks).stdout


def available_memory():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.mark.xdist_group("large-memory")
def test_llama3_8b_is_measured_in_the_bytes_of_its_weights(satune, realdata, tmp_path):
    """True widths, bf16 shards full of zeros: every logit is equal, so the loss is known. All 32 layers with SATUNE_FULL=1."""
    config = json.loads((realdata / "cfg_llama3_8b" / "config.json").read_text())
    layers = config["num_hidden_layers"] if os.environ.get("SATUNE_FULL") == "1" else 1
    write_sparse_model(tmp_path / "model", config | {"num_hidden_layers": layers}, realdata / "tok_llama3")
    parameters = 8030261248 - (32 - layers) * 218112000
    if available_memory() < 2 * parameters + 2 * 2**30:
        pytest.skip(f"needs {2 * parameters / 2**30 + 2:.0f} GiB of free memory")
    data = realdata / "alpaca_tiny_torchtune" / "alpaca_tiny.json"
    arguments = ["--task", f"response_loss={data}", "--max-records", 2, "--device", "cpu", "--json"]
    report = json.loads(call(satune, "eval", tmp_path / "model", *arguments).stdout)
    assert report["tasks"]["response_loss"]["n"] == 2
    assert report["tasks"]["response_loss"]["loss"] == pytest.approx(math.log(128256), rel=1e-5)
    assert report["parameters"] == parameters and report["precision"] == "bf16"
    # Beside the weights the libraries, 0.6 GB; a second copy would be more.
    assert report["peak_memory_bytes"] < 2 * parameters + 1.2e9


def test_perplexity_needs_no_end_token(satune, stories, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (model / name).write_bytes((stories / name).read_bytes())
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": None}))
    (tmp_path / "text.txt").write_text(make_models.STORY)
    text = ["--task", f"perplexity={tmp_path / 'text.txt'}"]
    expected = json.loads(call(satune, "eval", stories, *text, "--json").stdout)["tasks"]
    assert json.loads(call(satune, "eval", model, *text, "--json").stdout)["tasks"] == expected


def test_columns_of_evaluated_records(satune, stories, tmp_path, records):
    renamed = [{"question": row["instruction"], "context": row["input"], "answer": row["output"]}
               for row in json.loads(records.read_text())]
    path = tmp_path / "renamed.json"
    path.write_text(json.dumps(renamed))
    columns = ["--column", "instruction=question", "--column", "input=context", "--column", "output=answer"]

    def measured(data, *more):
        report = call(satune, "eval", stories, "--task", f"response_loss={data}", "--json", *more).stdout
        return json.loads(report)["tasks"]

    assert measured(path, *columns) == measured(records)
    assert "prompt" in refused(satune, "eval", stories, "--task", f"response_loss={path}", "--column", "prompt=question")


def test_positions_beyond_the_model_are_refused(satune, stories, tmp_path, records):
    positions = json.loads((stories / "config.json").read_text())["max_position_embeddings"]
    task = f"response_loss={records}"
    line = refused(satune, "eval", stories, "--task", task, "--max-length", positions + 1)
    assert "--max-length" in line and f"at most {positions}" in line
    line = refused(satune, "generate", stories, "--prompt", "Once", "--max-new-tokens", positions)
    assert "--max-new-tokens" in line and str(positions) in line
    assert "max_position_embeddings" in refused(satune, "generate", stories, "--prompt", "word " * positions)
    # The default takes what is left, and exact_match's answers end where the positions do.
    long_prompt = "word " * (positions // 4)
    answer = json.loads(call(satune, "generate", stories, "--prompt", long_prompt, "--json").stdout)
    assert 1 <= len(answer["tokens"]) < positions
    answers = ["eval", stories, "--task", f"exact_match={records}", "--max-records", 1, "--max-new-tokens"]
    call(satune, *answers, positions - 1)
    assert f"--max-new-tokens: found {positions}, expected fewer than {positions}" in refused(satune, *answers, positions)


def test_reports_are_standard_json(satune, stories, tmp_path):
    """A loss that is not finite is no result, and no report holds what is not JSON."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (broken / name).write_bytes((stories / name).read_bytes())
    with safe_open(stories / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text("Once upon a time")
    evaluation = ["--task", f"perplexity={tmp_path / 'text.txt'}", "--json"]
    assert "not finite" in refused(satune, "eval", broken, *evaluation, code=1)
    json.loads(call(satune, "eval", stories, *evaluation).stdout, parse_constant=pytest.fail)
    assert "not finite" in refused(satune, "generate", broken, "--prompt", "a", code=1)
