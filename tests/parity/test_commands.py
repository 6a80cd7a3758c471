"""The commands over a model, run as a user runs them: init, share, generate, eval, diff, and their errors."""

import json
import math
import pathlib
import resource
import subprocess
import sys

import make_models
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_train_command import llama3_8b  # noqa: F401, a fixture
from transformers import AutoModelForCausalLM

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high."
)
ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
DUMP_TOOL = pathlib.Path(__file__).with_name("dump_reference.py")


def call(program, *arguments, code=0):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, timeout=600)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def refused(program, *arguments, code=2):
    """The one line of an error."""
    done = call(program, *arguments, code=code)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def stories(realdata):
    path = realdata / "stories260K_hf"
    if not path.exists():
        pytest.skip(f"needs real data {path}")
    return path


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.json"
    rows = [
        {"instruction": f"Tell me about {thing}", "input": thing if i % 2 else "", "output": f"The {thing} was red. " * (1 + i % 3)}
        for i, thing in enumerate(["ball", "park", "girl", "dog", "caf\u00e9", "tree", "house"])
    ]
    path.write_text(json.dumps(rows))
    return path


def write_architecture(tmp_path, **changes):
    path = tmp_path / "arch.json"
    path.write_text(json.dumps({key: value for key, value in (ARCHITECTURE | changes).items() if value is not None}))
    return path


# generate


def test_a_real_model_tells_its_known_story(satune, stories):
    answer = json.loads(call(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 100, "--json").stdout)
    assert answer["text"].startswith(STORY)
    assert answer["prompt"] == "" and len(answer["tokens"]) == 100
    assert answer["kv_cache_bytes_per_token"] == 2 * 5 * 4 * 8 * 4
    streamed = call(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 100)
    assert streamed.stdout.decode() == answer["text"] + "\n"


def test_greedy_ids_are_those_of_transformers(satune, stories):
    prompt = "One day, a dog"
    answer = json.loads(call(satune, "generate", stories, "--prompt", prompt, "--max-new-tokens", 60, "--json").stdout)
    import sentencepiece

    ids = [1] + sentencepiece.SentencePieceProcessor(model_file=str(stories / "tokenizer.model")).encode(prompt)
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32, local_files_only=True)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :]
    assert answer["tokens"] == expected.tolist()
    assert answer["text"].startswith(" ")


def test_sampling_is_a_function_of_the_seed(satune, stories):
    def sample(seed, *more):
        arguments = ["--prompt", "Once", "--max-new-tokens", 40, "--temperature", 1, "--seed", seed, "--json", *more]
        return json.loads(call(satune, "generate", stories, *arguments).stdout)["tokens"]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, "--top-k", 1) == sample(2, "--top-k", 1)


def test_instruction_goes_through_the_template(satune, stories):
    arguments = ["--instruction", "Say hello", "--input", "to Lily", "--max-new-tokens", 5, "--json"]
    answer = json.loads(call(satune, "generate", stories, *arguments).stdout)
    assert answer["prompt"].startswith("Below is an instruction that describes a task, paired with an input")
    assert answer["prompt"].endswith("### Instruction:\nSay hello\n\n### Input:\nto Lily\n\n### Response:\n")


# eval


def nll(model, tokens):
    """-log p of tokens[1:], each."""
    logits = model(torch.tensor([tokens])).logits[0].double()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none")


def test_eval_equals_the_definitions(satune, stories, tmp_path, records):
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32, local_files_only=True).eval()
    text = tmp_path / "text.txt"
    text.write_text(STORY * 4)
    out = tmp_path / "report.json"
    tasks = ["--task", f"perplexity={text}", "--task", f"response_loss={records}", "--task", f"exact_match={records}"]
    call(satune, "eval", stories, *tasks, "--max-length", 256, "--max-new-tokens", 4, "--output", out)
    report = json.loads(out.read_text())

    with torch.no_grad():
        ids = [1] + tokenizer.encode(STORY * 4)
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
    assert "response_loss:other.json" in call(satune, "eval", stories, *tasks).stdout.decode()


def available_memory():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.mark.xdist_group("large-memory")
def test_llama3_8b_is_measured_in_the_bytes_of_its_weights(satune, llama3_8b, realdata):
    """True shapes, bf16 shards full of zeros: every logit is equal, so the loss is known."""
    if available_memory() < 18 * 2**30:
        pytest.skip("needs 18 GiB of free memory")
    data = realdata / "alpaca_tiny_torchtune" / "alpaca_tiny.json"
    arguments = ["--task", f"response_loss={data}", "--max-records", 2, "--device", "cpu", "--json"]
    report = json.loads(call(satune, "eval", llama3_8b, *arguments).stdout)
    assert report["tasks"]["response_loss"]["n"] == 2
    assert report["tasks"]["response_loss"]["loss"] == pytest.approx(math.log(128256), rel=1e-5)
    assert report["parameters"] == 8030261248 and report["precision"] == "bf16"
    assert report["peak_memory_bytes"] < 1.15 * 2 * report["parameters"]


# share


@pytest.mark.parametrize("shape", ["gqa", "tied"])
def test_share_copies_byte_for_byte(satune, tmp_path, shape):
    make_models.write_model(tmp_path / "dense", shape)
    source = load_file(tmp_path / "dense" / "model.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in source.items()}
    save_file(half, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    call(satune, "share", tmp_path / "dense", tmp_path / "copy")
    copy = load_file(tmp_path / "copy" / "model.safetensors")
    assert copy.keys() == half.keys()
    assert all(torch.equal(copy[name].view(torch.int16), half[name].view(torch.int16)) for name in half)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "llama"
    call(satune, "share", tmp_path / "dense", tmp_path / "shared", "--sharing", "3-4")
    shared = load_file(tmp_path / "shared" / "model.safetensors")
    left_out = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (3, 4) for p in "qk"}
    assert half.keys() - shared.keys() == left_out
    assert all(torch.equal(shared[name].view(torch.int16), half[name].view(torch.int16)) for name in shared)
    assert json.loads((tmp_path / "shared" / "config.json").read_text())["dtype"] == "bfloat16"


# export


def test_export_writes_what_the_run_exported(satune, stories, tmp_path, records):
    config = {
        "model_name_or_path": str(stories),
        "output_dir": str(tmp_path / "run"),
        "train_file": str(records),
        "val_size": 0,
        "max_length": 256,
        "max_steps": 4,
        "warmup_steps": 0,
        "save_steps": 2,
        "sharing": {"layers": "3-4"},
        "precision": "fp32",
        "learning_rate": 1e-3,
        "template": "alpaca_stanford",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    call(satune, "train", tmp_path / "config.json")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "run" / "export").iterdir()}
    call(satune, "export", tmp_path / "run", tmp_path / "newest")
    assert {path.name: path.read_bytes() for path in (tmp_path / "newest").iterdir()} == exported
    # The template that was trained is the one that is used from then on.
    answer = call(satune, "generate", tmp_path / "newest", "--instruction", "Hi", "--max-new-tokens", 2, "--json")
    assert json.loads(answer.stdout)["prompt"].endswith("### Response:")

    snapshots = tmp_path / "run" / "snapshots"
    call(satune, "export", snapshots / "step-00000002", tmp_path / "earlier", "--dtype", "bfloat16")
    earlier, newest = (load_file(tmp_path / name / "model.safetensors") for name in ("earlier", "newest"))
    assert earlier.keys() == newest.keys() and earlier["model.norm.weight"].dtype == torch.bfloat16
    # A damaged newest snapshot is left out of a run folder, and refused by name.
    shard = snapshots / "step-00000004" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    call(satune, "export", tmp_path / "run", tmp_path / "fallback", "--dtype", "bfloat16")
    assert (tmp_path / "fallback" / "model.safetensors").read_bytes() == (
        tmp_path / "earlier" / "model.safetensors"
    ).read_bytes()
    assert "rank-00000.safetensors" in refused(satune, "export", snapshots / "step-00000004", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_template_file_is_carried_along(satune, stories, tmp_path, records):
    """pain: another prompt when served than when trained. The file may be gone or changed afterwards."""
    template = tmp_path / "mine.json"
    strings = {"prompt_with_input": "Q: {instruction} ({input})\n", "prompt_without_input": "Q: {instruction}\n",
               "response_header": "A:"}
    template.write_text(json.dumps(strings))
    settings = {"model_name_or_path": stories, "output_dir": tmp_path / "run", "train_file": records, "val_size": 0,
                "max_length": 256, "max_steps": 2, "warmup_steps": 0, "sharing.layers": "3-4", "precision": "fp32",
                "token_cache_dir": "", "template": "mine.json"}
    (tmp_path / "config.json").write_text("{}")
    overrides = [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run([satune, "train", "config.json", *overrides], cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    export, elsewhere = tmp_path / "run" / "export", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def prompt(model):
        done = subprocess.run([satune, "generate", model, "--instruction", "Hi", "--input", "you", "--max-new-tokens",
                               "2", "--json"], cwd=elsewhere, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["prompt"]

    def measured(model):
        done = subprocess.run([satune, "eval", model, "--task", f"response_loss={records}", "--json"], cwd=elsewhere,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["tasks"]

    loss = measured(export)
    for change in ("gone", "another"):
        template.unlink(missing_ok=True)
        if change == "another":
            template.write_text(json.dumps(strings | {"response_header": "B:"}))
        assert prompt(export) == "Q: Hi (you)\nA:"
        assert measured(export) == loss
        call(satune, "share", export, elsewhere / f"copy-{change}")
        assert prompt(elsewhere / f"copy-{change}") == "Q: Hi (you)\nA:"
        # From the snapshot, too: state.json holds the strings.
        call(satune, "export", tmp_path / "run", elsewhere / f"again-{change}")
        for name in ("satune_template.json", "chat_template.jinja", "generation_config.json"):
            assert (elsewhere / f"again-{change}" / name).read_bytes() == (export / name).read_bytes()

    # An export of an older build names the file only: the error says where that stands.
    (export / "satune_template.json").unlink()
    config = json.loads((export / "generation_config.json").read_text()) | {"satune_template": "old/mine.json"}
    (export / "generation_config.json").write_text(json.dumps(config))
    line = refused(satune, "generate", export, "--instruction", "Hi")
    assert "generation_config.json: satune_template" in line and "old/mine.json" in line and "--template" in line


def test_the_format_of_the_data_is_remembered(satune, stories, tmp_path):
    """A run on plain text exports without a chat template, although its data have moved."""
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time there was a dog. " * 20)
    (tmp_path / "config.json").write_text("{}")
    settings = {"model_name_or_path": stories, "output_dir": tmp_path / "run", "train_file": book, "max_length": 128,
                "max_steps": 2, "warmup_steps": 0, "sharing.layers": "3-4", "precision": "fp32", "token_cache_dir": ""}
    done = call(satune, "train", tmp_path / "config.json", *(f"{key}={value}" for key, value in settings.items()))
    assert b"holds out nothing" in done.stderr  # the default val_size of a single document
    book.rename(tmp_path / "moved.txt")
    call(satune, "export", tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert not (tmp_path / "out" / "satune_template.json").exists()


def test_perplexity_needs_no_end_token(satune, stories, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        (model / name).write_bytes((stories / name).read_bytes())
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": None}))
    (tmp_path / "text.txt").write_text(STORY)
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
    call(satune, "eval", stories, "--task", f"exact_match={records}", "--max-new-tokens", 5 * positions,
         "--max-records", 1)


def test_output_that_does_not_arrive_is_an_error(satune, stories, records):
    for arguments in (["eval", stories, "--task", f"response_loss={records}", "--json"],
                      ["generate", stories, "--prompt", "Once", "--max-new-tokens", "3"],
                      ["train", "--print-config"], ["--version"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([satune, *map(str, arguments)], stdout=full, stderr=subprocess.PIPE, timeout=300)
        assert done.returncode == 3, arguments
        assert b"No space left on device" in done.stderr or b"standard output: cannot be written" in done.stderr


def test_what_the_machine_lacks_is_exit_3(satune, stories, tmp_path, records):
    arch = write_architecture(tmp_path)
    command = [satune, "init", arch, tmp_path / "out", "--train-tokenizer", records, "--vocab-size", "300"]
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=300,
                          env={"TMPDIR": "/nowhere", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 3 and b"TMPDIR: found /nowhere" in done.stderr, done.stderr
    call(satune, "init", arch, tmp_path / "base", "--tokenizer", stories)

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))

    big = write_architecture(tmp_path, hidden_size=4096, intermediate_size=16384, vocab_size=32000)
    done = subprocess.run([satune, "init", str(big), str(tmp_path / "big"), "--tokenizer", str(stories)],
                          capture_output=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 3 and b"memory" in done.stderr, (done.returncode, done.stderr)
    assert not (tmp_path / "big").exists()


# init


def test_init_makes_a_model_that_transformers_loads(satune, tmp_path, records):
    out = tmp_path / "base"
    arch = write_architecture(tmp_path)
    call(satune, "init", arch, out, "--train-tokenizer", records, "--vocab-size", 320, "--seed", 3)
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (320, 1, 2)
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    weights = model.model.layers[0].mlp.gate_proj.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1) and abs(weights.mean().item()) < 2e-3
    assert torch.equal(model.model.norm.weight, torch.ones(32))
    answer = json.loads(call(satune, "generate", out, "--instruction", "Hi", "--max-new-tokens", 3, "--json").stdout)
    assert 1 <= len(answer["tokens"]) <= 3

    call(satune, "init", arch, tmp_path / "again", "--tokenizer", out, "--seed", 3)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    call(satune, "init", arch, tmp_path / "other", "--tokenizer", out, "--seed", 4, "--dtype", "bfloat16", "--sharing", "4-5")
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert other["model.norm.weight"].dtype == torch.bfloat16
    assert "model.layers.4.self_attn.q_proj.weight" not in other
    assert not torch.equal(other["model.embed_tokens.weight"].float(), model.model.embed_tokens.weight.to(torch.bfloat16).float())


def test_init_refuses_ids_that_are_not_the_tokenizers(satune, tmp_path, stories):
    for changes, words in (
        ({"bos_token_id": 128000}, ["bos_token_id", "128000", "1"]),
        ({"eos_token_id": [5, 6]}, ["eos_token_id", "5", "2"]),
        ({"vocab_size": 100}, ["vocab_size", "100", "512"]),
    ):
        line = refused(satune, "init", write_architecture(tmp_path, **changes), tmp_path / "out", "--tokenizer", stories)
        assert all(word in line for word in words), line
        assert not (tmp_path / "out").exists()


# diff


@pytest.fixture
def dump(tmp_path, stories):
    """(model directory, dump) of the real model, shared over layers 3-4."""
    path = tmp_path / "dump.safetensors"
    command = [sys.executable, DUMP_TOOL, stories, "--tokens", "1,403,407,261,378,410,33,12", "--output", path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    return path


def test_diff_agrees_with_transformers(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump).stdout.decode()
    for name in ("embed", "layers.0.q", "layers.4.attention", "final_norm", "logits"):
        assert f"\n{name} " in done
    assert done.splitlines()[-1].startswith(f"{3 + 5 * 5} tensors agree")


def test_diff_names_the_first_element_that_parts(satune, stories, dump):
    tensors = load_file(dump)
    tensors["layers.2.v"][3, 1, 5] += 0.5
    tensors["logits"][0, 0] += 1
    save_file(tensors, dump)
    done = call(satune, "diff", stories, "--reference", dump, code=1).stdout.decode()
    assert "first to part: layers.2.v[3, 1, 5]" in done.splitlines()[-1]
    assert "1 of 256 elements" in done.splitlines()[-1]
    call(satune, "diff", stories, "--reference", dump, "--atol", 2)


def test_diff_finds_where_sharing_begins(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump, "--sharing", "3-4", code=1).stdout.decode()
    assert "first to part: layers.3.q[" in done.splitlines()[-1]


def test_diff_refuses_what_is_no_dump_of_this_model(satune, stories, dump, tmp_path):
    tensors = load_file(dump)
    save_file({"tokens": tensors["tokens"], "logits": tensors["logits"][:, :5].contiguous()}, tmp_path / "small.safetensors")
    assert "tensor logits" in refused(satune, "diff", stories, "--reference", tmp_path / "small.safetensors")
    save_file({"tokens": torch.tensor([1, 512])}, tmp_path / "outside.safetensors")
    assert "512" in refused(satune, "diff", stories, "--reference", tmp_path / "outside.safetensors")
    save_file({"logits": tensors["logits"]}, tmp_path / "none.safetensors")
    assert "tensor tokens" in refused(satune, "diff", stories, "--reference", tmp_path / "none.safetensors")


# errors


def test_errors_are_one_line_and_exit_2(satune, stories, tmp_path, records):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    arch = write_architecture(tmp_path)
    task = f"response_loss={records}"
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    book = tmp_path / "book.txt"
    book.write_text(STORY)
    call(satune, "share", stories, tmp_path / "shared", "--sharing", "3-4")
    cases = [
        (["generate", stories], ["--prompt", "--instruction"]),
        (["generate", stories, "--prompt", "a", "--instruction", "b"], ["--prompt", "--instruction"]),
        (["generate", stories, "--prompt", "a", "--input", "b"], ["--input"]),
        (["generate", stories, "--prompt", "a", "--temperature", "-1"], ["--temperature", "-1"]),
        (["generate", stories, "--prompt", "a", "--temperature", "1", "--top-p", "0"], ["--top-p", "0"]),
        (["generate", stories, "--prompt", "a", "--top-p", "0.9"], ["--top-p", "--temperature"]),
        (["generate", stories, "--prompt", "a", "--top-k", "3"], ["--top-k", "--temperature"]),
        (["generate", stories, "--prompt", "a", "--seed", "3"], ["--seed", "--temperature"]),
        (["generate", stories, "--prompt", "a", "--max-new-tokens", "0"], ["--max-new-tokens"]),
        (["generate", stories, "--prompt", "a", "--precision", "fp8"], ["--precision", "fp8"]),
        (["generate", stories, "--prompt", "a", "--device", "tpu"], ["--device", "tpu"]),
        (["generate", stories, "--prompt", "a", "--maxnew", "3"], ["--maxnew"]),
        (["generate", stories, "--instruction", "a", "--template", "vicuna"], ["vicuna"]),
        (["generate", tmp_path / "none", "--prompt", "a"], ["none"]),
        (["generate", full, "--prompt", "a"], ["full", "config.json"]),
        (["generate", stories, "--instruction", b"caf\xe9"], ["--instruction", "UTF-8", "3"]),
        (["eval", stories], ["--task"]),
        (["eval", stories, "--task", "response_loss"], ["NAME=PATH"]),
        (["eval", stories, "--task", "response_los=x"], ["response_los", "response_loss"]),
        (["eval", stories, "--task", "response_loss=missing.json"], ["missing.json"]),
        (["eval", stories, "--task", f"exact_match={empty}"], ["empty.json"]),
        (["eval", stories, "--task", task, "--task", task], [str(records)]),
        (["eval", stories, "--task", task, "--batch-size", "many"], ["--batch-size", "many"]),
        (["eval", stories, "--task", task, "--max-length", "10"], ["--max-length", "10"]),
        (["eval", stories, "--task", task, "--output", full / "file"], ["--output", "exist"]),
        (["eval", stories, "--task", task, "--output", tmp_path / "no" / "x.json"], ["--output", "no"]),
        (["eval", stories, "--task", task, "--sharing", "4-5"], ["5"]),
        (["eval", stories, "--task", task, "--anchor", "first"], ["--anchor", "--sharing"]),
        (["eval", tmp_path / "shared", "--task", task, "--sharing", "2-4"], ["2-4", "3-4"]),
        (["share", stories, full, "--sharing", "3-4"], ["full", "empty"]),
        (["share", stories, tmp_path / "out", "--sharing", "0-1"], ["0"]),
        (["share", stories, tmp_path / "out", "--dtype", "int8"], ["--dtype", "int8"]),
        (["export", tmp_path / "none", tmp_path / "out"], ["none"]),
        (["export", full, tmp_path / "out"], ["full", "snapshot"]),
        (["init", arch, full, "--tokenizer", stories], ["full", "empty"]),
        (["init", tmp_path / "none.json", tmp_path / "out"], ["none.json"]),
        (["init", arch, tmp_path / "out"], ["vocab_size"]),
        (["init", arch, tmp_path / "out", "--tokenizer", full], ["full"]),
        (["init", arch, tmp_path / "out", "--tokenizer", stories, "--train-tokenizer", records], ["--train-tokenizer"]),
        (["init", arch, tmp_path / "out", "--tokenizer", stories, "--template", "alpaca"], ["--template", "--train-tokenizer"]),
        (["init", arch, tmp_path / "out", "--train-tokenizer", book, "--template", "alpaca"], ["--template", "plain text"]),
        (["eval", stories, "--task", f"perplexity={book}", "--template", "alpaca"], ["--template", "perplexity"]),
        (["diff", stories, "--reference", tmp_path / "none.safetensors"], ["none.safetensors"]),
        (["diff", stories, "--reference", records], ["records.json"]),
    ]
    for arguments, words in cases:
        arguments = [argument if isinstance(argument, bytes) else str(argument) for argument in arguments]
        done = subprocess.run([satune, *arguments], capture_output=True, timeout=300)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 2 and len(lines) == 1, f"{arguments}: {done.returncode} {done.stdout} {lines}"
        assert all(word in lines[0] for word in words), f"{arguments}: {lines[0]}"
        assert not (tmp_path / "out").exists(), arguments
    assert (full / "file").read_text() == "x"


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(satune, tmp_path, stories):
    make_models.write_model(tmp_path / "small", "gqa")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "small" / name).write_bytes((stories / name).read_bytes())
    line = refused(satune, "generate", tmp_path / "small", "--prompt", "a")
    assert "512" in line and "97" in line, line


@pytest.mark.parametrize("command", ["init", "export", "share", "generate", "eval", "diff"])
def test_help_shows_examples(satune, command):
    text = call(satune, command, "--help").stdout.decode()
    assert f"satune {command} " in text.split("Example")[-1]


def test_reports_are_standard_json(satune, stories, tmp_path):
    """A loss that is not finite must not make the report unreadable."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (broken / name).write_bytes((stories / name).read_bytes())
    with safe_open(stories / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text("Once upon a time")
    done = call(satune, "eval", broken, "--task", f"perplexity={tmp_path / 'text.txt'}", "--json").stdout
    assert json.loads(done, parse_constant=pytest.fail)["tasks"]["perplexity"]["perplexity"] is None
    assert "not finite" in refused(satune, "generate", broken, "--prompt", "a", code=1)
