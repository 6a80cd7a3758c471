"""`satune generate` as a user runs it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import make_models
import pytest
import sentencepiece
import torch
from programs import call, refused
from transformers import AutoModelForCausalLM


def test_a_real_model_tells_its_known_story(satune, stories):
    answer = json.loads(call(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 100, "--json").stdout)
    assert answer["text"].startswith(make_models.STORY)
    assert answer["prompt"] == "" and len(answer["tokens"]) == 100 and answer["prompt_tokens"] == 1
    assert (answer["finish_reason"], answer["stop_reason"]) == ("length", None)
    assert answer["kv_cache_bytes_per_token"] == 2 * 5 * 4 * 8 * 4
    assert (answer["kv_cache_bytes"], answer["kv_cache_bytes_saved"]) == (101 * 2 * 5 * 4 * 8 * 4, 0)
    assert 0 < answer["time_to_first_token_s"] <= answer["seconds"]
    assert answer["tokens_per_s"] == pytest.approx(100 / answer["seconds"])
    streamed = call(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 100)
    assert streamed.stdout == answer["text"] + "\n"


def pieces(stories):
    return sentencepiece.SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))


def greedy(model, ids, count, **more):
    """transformers' answer."""
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                         max_new_tokens=count, do_sample=False, pad_token_id=0, **more)
    return out[0, len(ids) :].tolist()


def test_greedy_ids_are_those_of_transformers(satune, stories):
    """With and without a repetition penalty."""
    prompt = "One day, a dog"
    ids = [1] + pieces(stories).encode(prompt)
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32, local_files_only=True)
    for penalty in (1.0, 1.3):
        answer = json.loads(call(satune, "generate", stories, "--prompt", prompt, "--max-new-tokens", 60,
                                 "--repetition-penalty", penalty, "--json").stdout)
        assert answer["tokens"] == greedy(model, ids, 60, repetition_penalty=penalty), penalty
        assert answer["text"].startswith(" ")


PROMPTS = ["Once upon a time", "The dog", "", "One day, Lily and her mom went to the park", "Tom"]


@pytest.mark.parametrize("layers, anchor, bytes_a_token", [
    ("2-3", "before", (12 - 2) * 2 * 8 * 4), ("1-2,4-5", "before", (12 - 4) * 2 * 8 * 4),
    ("0-2,3-5", "first", (12 - 4) * 2 * 8 * 4)])
def test_an_export_that_shares_in_batches_and_alone(satune, stories, tmp_path, layers, anchor, bytes_a_token):
    model = tmp_path / "model"
    make_models.write_model(model, "gqa", layers, anchor, vocab_size=512)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (model / name).write_bytes((stories / name).read_bytes())
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=True, local_files_only=True)
    tokenizer = pieces(stories)
    expected = [greedy(peer, [1] + (tokenizer.encode(text) if text else []), 20) for text in PROMPTS]
    assert len(set(map(tuple, expected))) == len(expected)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    for batch in (1, 3, 8):
        done = call(satune, "generate", model, "--prompts", file, "--max-new-tokens", 20, "--batch-size", batch)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["number"] for answer in answers] == [1, 2, 3, 4, 5]
        assert [answer["tokens"] for answer in answers] == expected, batch
    for answer in answers:
        held = answer["prompt_tokens"] + len(answer["tokens"])
        assert answer["kv_cache_bytes"] == held * bytes_a_token
        assert answer["kv_cache_bytes_saved"] == held * (12 * 2 * 8 * 4 - bytes_a_token)
    # What was allocated: 5 sequences of the longest prompt and its answer.
    longest = max(answer["prompt_tokens"] for answer in answers) + 20
    saved = 5 * longest * (12 * 2 * 8 * 4 - bytes_a_token)
    assert f"KV cache {5 * longest * bytes_a_token:,} bytes, sharing saves {saved:,} bytes of" in done.stderr, done.stderr


def test_sampling_is_a_function_of_the_seed(satune, stories):
    def sample(seed, *more):
        arguments = ["--prompt", "Once", "--max-new-tokens", 40, "--temperature", 1, "--seed", seed, "--json", *more]
        return json.loads(call(satune, "generate", stories, *arguments).stdout)["tokens"]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, "--top-k", 1) == sample(2, "--top-k", 1)


def test_a_file_of_prompts(satune, stories, tmp_path):
    """Lines and records; answers depend on the seed and the prompt's place, not on the batch."""
    lines = tmp_path / "prompts.txt"
    lines.write_text("\nOnce upon a time\n\nThe dog\nOnce upon a time\n")
    draw = ["--temperature", 1, "--top-p", 0.9, "--top-k", 50, "--seed", 5, "--max-new-tokens", 25]
    out = [tmp_path / f"{batch}.jsonl" for batch in (1, 2, 8)]
    for batch, path in zip((1, 2, 8), out):
        assert call(satune, "generate", stories, "--prompts", lines, "--batch-size", batch, "--output", path, *draw).stdout == ""
    one, two, eight = ([json.loads(line) for line in path.read_text().splitlines()] for path in out)
    assert [answer["number"] for answer in one] == [2, 4, 5]
    assert [a["tokens"] for a in one] == [a["tokens"] for a in two] == [a["tokens"] for a in eight]
    assert one[0]["prompt"] == one[2]["prompt"] and one[0]["tokens"] != one[2]["tokens"]
    assert "an existing file" in refused(satune, "generate", stories, "--prompts", lines, "--output", out[0])
    # A file of that name is whole: what cannot be finished stays beside it.
    full = tmp_path / "full.jsonl"
    done = subprocess.run(["bash", "-c", 'trap "" XFSZ; ulimit -f 1; exec "$@"', "-", satune, "generate", stories, "--prompts", lines,
                           "--output", full, "--max-new-tokens", "300"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 3 and "full.jsonl: cannot be written: File too large" in done.stderr, done.stderr
    assert not full.exists() and (tmp_path / "full.jsonl.partial").exists()
    for seed in (-1, 2**64, "7x"):
        line = refused(satune, "generate", stories, "--prompts", lines, *draw[:-4], "--seed", seed)
        assert f"--seed: found {seed}, expected a whole number" in line

    templated = [json.loads(line) for line in call(
        satune, "generate", stories, "--prompts", lines, "--template", "alpaca", "--max-new-tokens", 3).stdout.splitlines()]
    assert templated[1]["prompt"].endswith("### Instruction:\nThe dog\n\n### Response:\n")
    records = tmp_path / "records.json"
    records.write_text(json.dumps([{"instruction": "Say hello", "input": "to Lily", "output": "not read"}, {"prompt": "Tom"}]))
    first, second = (json.loads(line) for line in call(
        satune, "generate", stories, "--prompts", records, "--max-new-tokens", 3).stdout.splitlines())
    assert first["prompt"].endswith("### Input:\nto Lily\n\n### Response:\n") and second["prompt"] == "Tom"


def test_a_text_without_any_token_is_refused(satune, stories_without_bos, tmp_path):
    assert "the prompt: found no token: the tokenizer has no BOS" in refused(
        satune, "generate", stories_without_bos, "--prompt", "")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Tom"}\n{"prompt": ""}\n')
    assert "prompts.jsonl prompt 2: found no token" in refused(satune, "generate", stories_without_bos, "--prompts", prompts)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"prompt_with_input": "{instruction}{input}", "prompt_without_input": "{instruction}"}))
    assert "the prompt: found no token" in refused(
        satune, "generate", stories_without_bos, "--instruction", "", "--template", bare)


@pytest.mark.parametrize("penalty", ["0", "1e-40", "1e4", "nan"])
def test_a_repetition_penalty_out_of_range_is_refused(satune, stories, penalty):
    line = refused(satune, "generate", stories, "--prompt", "Once", "--repetition-penalty", penalty, "--temperature", 1)
    assert "--repetition-penalty: found" in line and "expected a number from 0.001 to 1000" in line


def test_stop_strings(satune, stories):
    """Cut where they begin, whatever tokens they come in; nothing of one on the screen."""
    arguments = ["--prompt", "", "--max-new-tokens", 100, "--stop", "ball. She", "--stop", "nobody says this"]
    answer = json.loads(call(satune, "generate", stories, *arguments, "--json").stdout)
    assert answer["text"] == make_models.STORY.split("ball. She")[0]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", "ball. She")
    assert call(satune, "generate", stories, *arguments).stdout == answer["text"] + "\n"


def test_instruction_goes_through_the_template(satune, stories):
    arguments = ["--instruction", "Say hello", "--input", "to Lily", "--max-new-tokens", 5, "--json"]
    answer = json.loads(call(satune, "generate", stories, *arguments).stdout)
    assert answer["prompt"].startswith("Below is an instruction that describes a task, paired with an input")
    assert answer["prompt"].endswith("### Instruction:\nSay hello\n\n### Input:\nto Lily\n\n### Response:\n")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(satune, tmp_path, stories):
    make_models.write_model(tmp_path / "small", "gqa")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "small" / name).write_bytes((stories / name).read_bytes())
    line = refused(satune, "generate", tmp_path / "small", "--prompt", "a")
    assert "512" in line and "97" in line, line


def alpaca(text):
    return ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{text}\n\n### Response:\n")


def test_a_conversation_through_a_pipe(satune, stories):
    """Each turn is answered after those before it: ids as transformers has them on the whole history."""
    turns = ["Tell me of a dog", "And a cat?", "More"]
    done = subprocess.run([satune, "generate", str(stories), "--interactive", "--json", "--max-new-tokens", "12"],
                          input="\n".join(turns[:2]) + "\n\n/clear\n" + turns[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prompt"] for answer in answers] == turns
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32, local_files_only=True)
    history = [1]
    for turn, answer in zip(turns, answers):
        if turn == "More":
            history = [1]
        history += pieces(stories).encode(alpaca(turn))
        assert answer["tokens"] == greedy(model, history, 12)
        assert answer["prompt_tokens"] == len(history)
        history += [token for token in answer["tokens"] if token != 2] + [2]
    assert len(done.stderr.splitlines()) == 1 and " tokens/s" in done.stderr


def with_positions(stories, directory, count):
    directory.mkdir()
    for path in stories.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": count}))
    return directory


def test_a_conversation_that_no_longer_fits(satune, stories, tmp_path):
    """The oldest turns go, with a word about it; a turn that never fits is an error."""
    short = with_positions(stories, tmp_path / "short", 200)
    command = [satune, "generate", str(short), "--interactive", "--json", "--max-new-tokens", "20"]
    done = subprocess.run(command, input="One\nTwo\nThree\n", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "the model's 200 positions are full: the oldest turn is forgotten" in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["prompt_tokens"] + 20 <= 200
    done = subprocess.run(command, input="a " * 300 + "\n", capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == "satune: error: the turn: found more tokens than the model has positions, expected fewer than 200, with the template\n"


def test_a_turn_that_never_fits_changes_nothing_at_a_terminal(satune, stories, tmp_path):
    short = with_positions(stories, tmp_path / "short", 300)
    terminal, other = pty.openpty()
    child = subprocess.Popen([satune, "generate", str(short), "--interactive", "--json", "--max-new-tokens", "20"], stdin=other,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(other)
    os.write(terminal, b"One\n" + b"a " * 400 + b"\n" + b"One\n\x04")
    out, errors = child.communicate(timeout=300)
    os.close(terminal)
    assert child.returncode == 0 and "error: the turn: found more tokens" in errors
    [first, second] = [json.loads(line) for line in out.splitlines()]
    assert "forgotten" not in errors
    assert second["prompt_tokens"] > first["prompt_tokens"] + 20, "the first turn is still there"


def test_an_answer_cut_by_the_positions_says_so(satune, stories, tmp_path):
    short = with_positions(stories, tmp_path / "short", 120)
    done = subprocess.run([satune, "generate", str(short), "--interactive", "--json", "--max-new-tokens", "110"], input="One\n",
                          capture_output=True, text=True, timeout=300)
    answer = json.loads(done.stdout)
    count = 120 - answer["prompt_tokens"]
    assert f"the answer ends after {count} tokens, where the model's 120 positions are full" in done.stderr


def read_until(terminal, pattern, seconds=120):
    text, end = "", time.monotonic() + seconds
    while not re.search(pattern, text):
        assert time.monotonic() < end, text
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 4096).decode(errors="replace")
    return text


def test_ctrl_c_stops_the_answer_and_then_the_program(satune, stories, tmp_path):
    make_models.write_model(tmp_path, "gqa", vocab_size=512, max_position_embeddings=1 << 20)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((stories / name).read_bytes())
    terminal, other = pty.openpty()
    # Minutes of answer, unless something ends it.
    child = subprocess.Popen([satune, "generate", str(tmp_path), "--interactive", "--max-new-tokens", "200000"],
                             stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    read_until(terminal, "> $")
    os.write(terminal, b"Tell me of a dog\n")
    read_until(terminal, "dog\r\n.")
    child.send_signal(signal.SIGINT)
    read_until(terminal, "\r\n> $")
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert int(re.search(r"(\d+) tokens in", read_until(terminal, "KV cache"))[1]) < 200000
    assert child.wait(60) == 0
    os.close(terminal)


def test_a_signal_says_where_the_answers_are(satune, stories, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once\n" * 2000)
    for output in (tmp_path / "out.jsonl", None):
        command = [satune, "generate", str(stories), "--prompts", str(prompts), "--max-new-tokens", "20", "--device", "cpu"]
        child = subprocess.Popen([*command, *(["--output", str(output)] if output else [])], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        partial = tmp_path / "out.jsonl.partial"
        if output:
            end = time.monotonic() + 60
            while not (partial.exists() and partial.stat().st_size):
                assert child.poll() is None and time.monotonic() < end
                time.sleep(0.01)
        else:
            child.stdout.readline()
        child.send_signal(signal.SIGINT)
        log = child.communicate(timeout=60)[1].decode()
        place = f"{partial} holds the answers until here" if output else "the answers until here are printed"
        assert child.returncode == -signal.SIGINT
        assert log.splitlines()[-1] == f"satune: stopped by a signal: {place}; the same command begins anew"
        assert not output or (partial.exists() and not output.exists())


def test_a_reader_that_has_gone_is_one_line(satune, stories):
    child = subprocess.Popen([satune, "generate", str(stories), "--prompt", "Once", "--max-new-tokens", "200"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()
    error = child.stderr.read()
    assert child.wait(60) == 3
    assert error == "satune: error: standard output: cannot be written: Broken pipe\n"
