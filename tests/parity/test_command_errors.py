"""What the commands over a model say and return when they cannot go on, and their help."""

import resource
import subprocess

import make_models
import pytest
from programs import call


def test_output_that_does_not_arrive_is_an_error(satune, stories, records, tmp_path):
    arch = make_models.write_architecture(tmp_path, vocab_size=300)
    for arguments in (["eval", stories, "--task", f"response_loss={records}", "--json"],
                      ["generate", stories, "--prompt", "Once", "--max-new-tokens", "3"],
                      ["bench", arch, "--sequence-length", "8", "--steps", "1", "--precision", "fp32", "--json"],
                      ["data", records, "--model", stories, "--records", "1-20"],
                      ["train", "--print-config"], ["--version"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([satune, *map(str, arguments)], stdout=full, stderr=subprocess.PIPE, timeout=300)
        assert done.returncode == 3, arguments
        reason = b"" if arguments == ["--version"] else b": No space left on device"
        told = b"satune: error: standard output: cannot be written" + reason
        assert done.stderr.splitlines()[-1] == told, (arguments, done.stderr)


def test_what_the_machine_lacks_is_exit_3(satune, stories, tmp_path, records):
    arch = make_models.write_architecture(tmp_path)
    command = [satune, "init", arch, tmp_path / "out", "--train-tokenizer", records, "--vocab-size", "300"]
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=300,
                          env={"TMPDIR": "/nowhere", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 3 and b"TMPDIR: found /nowhere" in done.stderr, done.stderr
    call(satune, "init", arch, tmp_path / "base", "--tokenizer", stories)

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))

    big = make_models.write_architecture(tmp_path, hidden_size=4096, intermediate_size=16384, vocab_size=32000)
    done = subprocess.run([satune, "init", str(big), str(tmp_path / "big"), "--tokenizer", str(stories)],
                          capture_output=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 3 and b"memory" in done.stderr, (done.returncode, done.stderr)
    assert not (tmp_path / "big").exists()


def test_errors_are_one_line_and_exit_2(satune, stories, tmp_path, records):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("x")
    arch = make_models.write_architecture(tmp_path)
    task = f"response_loss={records}"
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    book = tmp_path / "book.txt"
    book.write_text(make_models.STORY)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    long = tmp_path / "long.txt"
    long.write_text("Once\n" + "a b " * 600 + "\n")
    call(satune, "share", stories, tmp_path / "shared", "--sharing", "3-4")
    cases = [
        (["generate", stories], ["--prompt", "--instruction"]),
        (["generate", stories, "--prompt", "a", "--instruction", "b"], ["--prompt", "--instruction"]),
        (["generate", stories, "--prompt", "a", "--input", "b"], ["--input"]),
        (["generate", stories, "--prompt", "a", "--temperature", "-1"], ["--temperature", "-1"]),
        (["generate", stories, "--prompt", "a", "--temperature", "hot"], ["--temperature: found hot, expected a number"]),
        (["generate", stories, "--prompt", "a", "--temperature", "1", "--top-p", "0"], ["--top-p", "0"]),
        (["generate", stories, "--prompt", "a", "--top-p", "0.9"], ["--top-p", "--temperature"]),
        (["generate", stories, "--prompt", "a", "--top-k", "3"], ["--top-k", "--temperature"]),
        (["generate", stories, "--prompt", "a", "--seed", "3"], ["--seed", "--temperature"]),
        (["generate", stories, "--prompt", "a", "--repetition-penalty", "0"], ["--repetition-penalty", "0"]),
        (["generate", stories, "--prompt", "a", "--stop", ""], ["--stop", "empty"]),
        (["generate", stories, "--prompts", empty], ["empty.json", "empty array"]),
        (["generate", stories, "--prompts", blank], ["blank.txt", "blank lines"]),
        (["generate", stories, "--prompts", tmp_path / "none.txt"], ["none.txt"]),
        (["generate", stories, "--prompts", long, "--max-new-tokens", "3"], ["long.txt prompt 2", "512"]),
        (["generate", stories, "--prompts", book, "--max-new-tokens", "500"], ["--max-new-tokens", "500", "512"]),
        (["generate", stories, "--prompts", book, "--json"], ["--json", "--prompts"]),
        (["generate", stories, "--prompts", book, "--interactive"], ["--prompts", "--interactive"]),
        (["generate", stories, "--prompts", book, "--template", "vicuna"], ["vicuna"]),
        (["generate", stories, "--interactive", "--template", "llama3"], ["<|start_header_id|>"]),
        (["generate", stories, "--prompt", "a", "--output", tmp_path / "o"], ["--output", "--prompts"]),
        (["generate", stories, "--prompt", "a", "--batch-size", "2"], ["--batch-size", "--prompts"]),
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
        (["eval", stories, "--task", task, "--sharing", "4-5"], ['error: --sharing "4-5": found layer 5']),
        (["eval", stories, "--task", task, "--sweep", "none;4-5"], ['error: --sweep "4-5": found layer 5']),
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


@pytest.mark.parametrize("command", ["init", "export", "share", "generate", "eval", "diff"])
def test_help_shows_examples(satune, command):
    text = call(satune, command, "--help").stdout
    assert f"satune {command} " in text.split("Example")[-1]
