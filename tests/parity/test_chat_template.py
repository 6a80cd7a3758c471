"""The chat template of an export gives the ids that were trained: rendered and tokenised by transformers,
against satune's own encoding of the same record."""

import json
import shutil
import subprocess

import pytest
from transformers import AutoTokenizer

# Line ends, quotes and backslashes, looks of placeholders and of Jinja, several scripts, white space inside.
# Looks of special tokens are left out: transformers makes special tokens of them, satune never does.
RECORDS = [
    ("Say hello.", "Hello!"),
    ("What is\n\n1 + 1?", "It's \"2\"."),
    ("{instruction} {input} {output} {{ bos_token }} {% if x %}", "{{ eos_token }} \\n {# no comment #}"),
    ("Übersetze:  日本語 🦙", "Ein Lama"),
    ("\\", "'"),
    ("1. one\n2. two\n", "\tfirst\n\n\nsecond"),
]
TEMPLATES = ["alpaca", "alpaca_stanford", "llama3"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def trained(tool, directory, template, tmp_path):
    """[(prompt ids, all ids)] of RECORDS."""
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"instruction": i, "output": o} for i, o in RECORDS]))
    rows = [list(map(int, line.split())) for line in tool("records", directory, template, path).decode().splitlines()]
    assert len(rows) == len(RECORDS)
    return [(ids[:length], ids) for length, *ids in rows]


def chat_ids(tokenizer, messages, **options):
    ids = tokenizer.apply_chat_template(messages, tokenize=True, **options)
    return ids if isinstance(ids, list) else ids["input_ids"]


def check(tokenizer, expected, seam=True):
    """`seam`: nothing of a response can merge with the end of its prompt."""
    for (instruction, output), (prompt, whole) in zip(RECORDS, expected):
        assert chat_ids(tokenizer, [user(instruction)], add_generation_prompt=True) == prompt, instruction
        if not seam and not output[0].isalpha():
            continue
        assert chat_ids(tokenizer, [user(instruction), assistant(output)]) == whole, (instruction, output)


@pytest.mark.parametrize("with_json", [False, True], ids=["model", "model+json"])
@pytest.mark.parametrize("template", ["alpaca", "alpaca_stanford"])
def test_llama2(tool, realdata, tmp_path, template, with_json):
    """Each text of a record has a dummy prefix of its own in training."""
    for file in ("tokenizer.model", "special_tokens_map.json") + ("tokenizer.json",) * with_json:
        shutil.copy(realdata / "tok_llama2" / file, tmp_path)
    config = json.loads((realdata / "tok_llama2" / "tokenizer_config.json").read_text())
    # As an export sets it: see ExportFiles.AChatTemplateSetsLegacy.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
    expected = trained(tool, tmp_path, template, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(tool("chat-template", tmp_path, template))
    check(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True), expected)


@pytest.fixture(scope="module")
def llama3(llama3_json, tmp_path_factory):
    """A directory with Llama-3's tokenizer.json, and the tokenizer that transformers makes of it."""
    directory = tmp_path_factory.mktemp("llama3")
    shutil.copy(llama3_json / "tokenizer.json", directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>", "clean_up_tokenization_spaces": False}))
    return directory, AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.mark.parametrize("template", TEMPLATES)
def test_llama3(tool, llama3, tmp_path, template):
    directory, tokenizer = llama3
    expected = trained(tool, directory, template, tmp_path)
    tokenizer.chat_template = tool("chat-template", directory, template).decode()
    # "Response:" and "'" are one token in one text; satune encodes them apart, a rendered chat cannot say so.
    check(tokenizer, expected, seam=template != "alpaca_stanford")
    with pytest.raises(Exception, match="user and assistant messages only"):
        chat_ids(tokenizer, [{"role": "system", "content": "Be brief."}, user("Hi")])


def test_an_export_of_a_run(satune, tool, realdata, tmp_path):
    """pain: another prompt when served than when trained. With a template file, from training to transformers."""
    template = tmp_path / "mine.json"
    template.write_text(json.dumps({"prompt_with_input": "Q: {instruction}\n{input}\n",
                                    "prompt_without_input": "Q: {instruction}\n", "response_header": "A:",
                                    "response_suffix": "\n", "trim": True}))
    data = tmp_path / "train.json"
    data.write_text(json.dumps([{"instruction": f"Count to {n}.", "output": "one two"} for n in range(1, 9)]))
    settings = {"model_name_or_path": realdata / "stories260K_hf", "output_dir": tmp_path / "run", "train_file": data,
                "template": template, "token_cache_dir": "", "val_size": 0, "max_length": 256, "max_steps": 1,
                "warmup_steps": 0, "precision": "fp32", "device": "cpu", "num_threads": 1, "sharing.layers": "3-4"}
    (tmp_path / "config.json").write_text("{}")
    subprocess.run([satune, "train", tmp_path / "config.json", *(f"{key}={value}" for key, value in settings.items())],
                   check=True, capture_output=True, timeout=300)
    export = tmp_path / "run" / "export"
    expected = trained(tool, export, export / "satune_template.json", tmp_path)
    assert expected == trained(tool, export, template, tmp_path)
    check(AutoTokenizer.from_pretrained(export, local_files_only=True), expected)
