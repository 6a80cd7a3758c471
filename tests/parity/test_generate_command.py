"""`satune generate` as a user runs it."""

import json

import make_models
import torch
from programs import call, refused
from transformers import AutoModelForCausalLM


def test_a_real_model_tells_its_known_story(satune, stories):
    answer = json.loads(call(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 100, "--json").stdout)
    assert answer["text"].startswith(make_models.STORY)
    assert answer["prompt"] == "" and len(answer["tokens"]) == 100
    assert answer["kv_cache_bytes_per_token"] == 2 * 5 * 4 * 8 * 4
    streamed = call(satune, "generate", stories, "--prompt", "", "--max-new-tokens", 100)
    assert streamed.stdout == answer["text"] + "\n"


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


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(satune, tmp_path, stories):
    make_models.write_model(tmp_path / "small", "gqa")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "small" / name).write_bytes((stories / name).read_bytes())
    line = refused(satune, "generate", tmp_path / "small", "--prompt", "a")
    assert "512" in line and "97" in line, line
