"""satune's tokenizers against the libraries that define them: sentencepiece for Llama-2's tokenizer.model,
the tokenizers library for tokenizer.json, tiktoken for Llama-3's rank file."""

import json
import random

import pytest
import sentencepiece
import tiktoken
import tiktoken.load
import tokenizers
from tokenizers import pre_tokenizers

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
LLAMA3_SPECIALS = (
    ["<|begin_of_text|>", "<|end_of_text|>"]
    + [f"<|reserved_special_token_{i}|>" for i in range(4)]
    + ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    + [f"<|reserved_special_token_{i}|>" for i in range(5, 251)]
)
ALPACA_FILES = ["alpaca_random9k/random_9k.json", "alpaca_llamafactory_demo/alpaca_en_demo.json",
                "alpaca_tiny_torchtune/alpaca_tiny.json", "alpaca_gsm8k/gsm_8k_train.json"]


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def encode(tool, directory, texts, mode="encode"):
    lines = tool(mode, directory, texts=texts).decode().splitlines()
    assert len(lines) == len(texts)
    return [list(map(int, line.split())) for line in lines]


def decode(tool, directory, ids, mode="decode"):
    out, texts, position = tool(mode, directory, lines=ids), [], 0
    while position < len(out):
        newline = out.index(b"\n", position)
        end = newline + 1 + int(out[position:newline])
        texts.append(out[newline + 1 : end].decode())
        position = end
    return texts


def assert_same(texts, found, expected):
    assert len(found) == len(expected) == len(texts)
    wrong = [(t, f, e) for t, f, e in zip(texts, found, expected) if f != e]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, first: {wrong[0]!r}"


def alpaca_texts(realdata):
    texts = []
    for name in ALPACA_FILES:
        for record in json.loads((realdata / name).read_text()):
            texts += [value for value in record.values() if isinstance(value, str)]
    return texts


SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80),
           (0x10A0, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2BFF), (0x3000, 0x3100), (0x4E00, 0x9FFF),
           (0xAC00, 0xD7A4), (0xFB00, 0xFFFE), (0x1D400, 0x1D800), (0x1F000, 0x1FAFF), (0x20000, 0x323AF)]
SPACES = [" ", "  ", "\t", "\n", "\r", "\r\n", "\n\n", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u2581"]
WORDS = ["'s", "'S", "'\u017f", "'ll", "'LL", "'Ve", "'re", "'d", "don't", "I'M", "it\u2019s", "hello", "World", "na\u00efve",
         "\u0130", "\u00df", "1", "12", "123", "1234", "123456789", "3.14", "-7", "\u0661\u0662\u0663\u0664", "\u00bd\u00b2",
         "\u2163", "\U0001f999", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "e\u0301", "<s>", "</s>",
         "<unk>", "<0x0A>", "[INST]", "<<SYS>>", "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|", "|>",
         "<|start_header_id|>", "<|reserved_special_token_7|>", "\u0120the", "\u010a", "\ufffd", "\x00", "\x01", "\x7f",
         "\ue000", "\U0010ffff", "\ufffe", "def f(x):", "    return", "https://a.b/c?d=e", "....", "!!!", "--", "_a_"]


def generated_texts(count, seed):
    """Fragments of all kinds side by side: scripts, spaces, contractions, digits, look-alikes, long runs."""
    rng = random.Random(seed)

    def fragment():
        kind = rng.random()
        if kind < 0.3:
            return rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 5])
        if kind < 0.65:
            return rng.choice(WORDS)
        if kind < 0.95:
            first, last = rng.choice(SCRIPTS)
            return "".join(chr(rng.randrange(first, last)) for _ in range(rng.randrange(1, 12)))
        if kind < 0.97:
            return chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
        return rng.choice([*"a \n-0", "ab", "\u00e9", "\u4e2d", "\U0001f600"]) * rng.randrange(20, 300)

    return ["".join(fragment() for _ in range(rng.randrange(1, 14))) for _ in range(count)]


@pytest.fixture(scope="session")
def texts(realdata):
    fixed = ["", " ", "\n", "a", "\x00", " a", "a ", "  a  b  ", *WORDS, *SPACES]
    found = fixed + alpaca_texts(realdata) + generated_texts(15000, seed=1)
    assert len(found) > 20000
    return found


def random_ids(vocab_size, count, seed):
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(rng.randrange(1, 30))] for _ in range(count)]


# Llama-2 and trained SentencePiece models


def check_sentencepiece(tool, directory, texts):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    expected = reference.encode(texts)
    assert_same(texts, encode(tool, directory, texts), expected)
    size = reference.get_piece_size()
    # Few ids first: unk, bos, eos and bytes, many of which are not UTF-8 in this order.
    samples = expected + random_ids(260, 2000, seed=2) + random_ids(size, 5000, seed=3)
    assert_same(samples, decode(tool, directory, samples, "decode-skip"), reference.decode(samples))


def test_llama2_is_sentencepiece(tool, realdata, texts):
    check_sentencepiece(tool, realdata / "tok_llama2", texts)


def test_stories_tokenizer_is_sentencepiece(tool, realdata, texts):
    check_sentencepiece(tool, realdata / "stories260K_hf", texts[-4000:])


def test_llama2_shows_special_tokens_where_asked(tool, realdata):
    info = tool("info", realdata / "tok_llama2", "<s>", "</s>", "<unk>", "hello").split()
    assert info[:4] == [b"sentencepiece", b"32000", b"1", b"2"] and info[5:] == [b"1", b"2", b"0", b"-1"]
    assert decode(tool, realdata / "tok_llama2", [[1, 15043, 2]]) == ["<s>Hello</s>"]


OTHER_MODELS = {
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "normalized": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc",
                   "remove_extra_whitespaces": True},
    "no_bytes": {"model_type": "bpe", "byte_fallback": False, "character_coverage": 0.98},
    "no_prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, "character_coverage": 0.98},
    "user_symbols": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<sep>", "ing"]},
    "across_spaces": {"model_type": "bpe", "byte_fallback": True, "split_by_whitespace": False},
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_sentencepiece_models(tool, texts, tmp_path, name):
    """Models that the fast path takes, and models that it must leave to the library."""
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} | OTHER_MODELS[name]
    lines = [line for text in texts[100:2000] for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=str(tmp_path / "tokenizer"),
                                             vocab_size=600, minloglevel=2, num_threads=1, **options)
    check_sentencepiece(tool, tmp_path, texts[:3000] + texts[-3000:] + ["a<sep>bing"])


def test_trained_tokenizer_loads_everywhere(tool, realdata, tmp_path):
    texts = alpaca_texts(realdata)[:3000]
    tool("train", tmp_path, 1000, texts=texts)
    check_sentencepiece(tool, tmp_path, texts + generated_texts(1000, seed=4))
    plain = [t for t in texts + generated_texts(1000, seed=5) if "\u2581" not in t]
    assert decode(tool, tmp_path, encode(tool, tmp_path, plain)) == plain
    import transformers

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    sample = [t for t in texts[:200] if t and not t.startswith(" ")]
    assert_same(sample, encode(tool, tmp_path, sample), auto(sample, add_special_tokens=False).input_ids)
    assert auto("x").input_ids[0] == auto.bos_token_id == 1 and auto.eos_token_id == 2


# Llama-3


@pytest.fixture(scope="session")
def tiktoken_llama3(realdata):
    ranks = tiktoken.load.load_tiktoken_bpe(str(realdata / "tok_llama3" / "tokenizer.model"))
    specials = {text: len(ranks) + i for i, text in enumerate(LLAMA3_SPECIALS)}
    return tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def reference_json(directory):
    reference = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    reference.encode_special_tokens = True  # text is text
    return reference


def json_ids(reference, texts):
    return [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]


def test_llama3_json_is_the_tokenizers_library(tool, llama3_json, texts):
    assert_same(texts, encode(tool, llama3_json, texts), json_ids(reference_json(llama3_json), texts))


def test_llama3_rank_file_is_tiktoken(tool, realdata, tiktoken_llama3, texts):
    assert_same(texts, encode(tool, realdata / "tok_llama3", texts), tiktoken_llama3.encode_ordinary_batch(texts))


def test_llama3_decodes_as_the_references(tool, realdata, llama3_json, tiktoken_llama3, texts):
    reference = reference_json(llama3_json)
    samples = tiktoken_llama3.encode_ordinary_batch(texts[::5])
    samples += random_ids(256, 2000, seed=6) + random_ids(128256, 5000, seed=7) + [[128000, 9906, 128009], [128001]]
    shown = tiktoken_llama3.decode_batch(samples)
    assert_same(samples, decode(tool, realdata / "tok_llama3", samples), shown)
    assert_same(samples, decode(tool, llama3_json, samples), shown)
    assert shown == reference.decode_batch(samples, skip_special_tokens=False)
    skipped = reference.decode_batch(samples, skip_special_tokens=True)
    assert_same(samples, decode(tool, llama3_json, samples, "decode-skip"), skipped)
    assert_same(samples, decode(tool, realdata / "tok_llama3", samples, "decode-skip"), skipped)


def test_llama3_special_tokens_have_their_ids(tool, realdata, llama3_json):
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
             "<|reserved_special_token_0|>", "<|reserved_special_token_250|>"]
    ids = [b"128000", b"128001", b"128006", b"128007", b"128009", b"128002", b"128255"]
    for directory in (realdata / "tok_llama3", llama3_json):
        info = tool("info", directory, *names).split()
        assert info[:4] == [b"bpe", b"128256", b"128000", b"128001"] and info[5:] == ids
        assert float(info[4]) < 0.8, "loading must stay well under a second of CPU time"


def test_rank_file_takes_the_names_of_the_config_beside_it(tool, realdata, tmp_path):
    """Llama-3's own naming, 3.1's, and 3.1's extra names where no config says anything."""
    (tmp_path / "tokenizer.model").symlink_to(realdata / "tok_llama3" / "tokenizer.model")
    names = ["<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"]
    assert tool("info", tmp_path, *names).split()[5:] == [b"128008", b"128010", b"128004"]
    for source in ("cfg_llama3_8b_instruct", "cfg_llama32_1b"):
        config = (realdata / source / "tokenizer_config.json").read_text()
        (tmp_path / "tokenizer_config.json").write_text(config)
        tokens = json.loads(config)["added_tokens_decoder"]
        tokens = {token["content"]: id for id, token in tokens.items()}
        info = tool("info", tmp_path, *tokens).decode().split()
        assert info[5:] == list(tokens.values()) and info[1] == "128256"
        eos = json.loads(config)["eos_token"]
        assert info[3] == tokens[eos if isinstance(eos, str) else eos["content"]]


def test_ill_formed_bytes_are_replaced_as_python_does(tool, realdata, tiktoken_llama3):
    rng = random.Random(8)
    samples = [b"\xff", b"a\xe2\x82", b"\xed\xa0\x80x", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xf0\x9f\xa6", b"\x80 \x80"]
    for _ in range(3000):
        samples.append(bytes(rng.choice([rng.randrange(256), rng.randrange(0x80, 0x100), 0x61])
                             for _ in range(rng.randrange(1, 20))))
    clean = [s.decode(errors="replace") for s in samples]
    assert_same(samples, encode(tool, realdata / "tok_llama3", samples), tiktoken_llama3.encode_ordinary_batch(clean))


# Pre-tokenizers and other byte-level tokenizers


def test_every_code_point_has_the_class_of_the_reference(tool):
    found = tool("classes").decode()
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for digit, pattern in (("1", r"\p{L}"), ("2", r"\p{N}"), ("3", r"\s")):
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
        rest = {c for piece, _ in split.pre_tokenize_str("".join(characters)) for c in piece}
        assert [c for c in characters if c not in rest] == [c for c in characters if found[ord(c)] == digit], pattern


def split_by(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior, invert),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {
    "llama3": split_by(tokenizers.Regex(LLAMA3_PATTERN)),
    "qwen": split_by(tokenizers.Regex(QWEN_PATTERN)),
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt2_prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                       pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "digit_runs": pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]),
    "literal": split_by("a", "isolated"),
    "removed": split_by(tokenizers.Regex(r"\s+"), "removed"),
    "kept": split_by(tokenizers.Regex(r"\p{L}+|\P{L}"), "removed", invert=True),
}


def as_json(pre_tokenizer):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_words_are_those_of_the_reference(tool, texts, name):
    # Every assigned or notable code point of the first planes in six surroundings, and the general texts.
    every = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x20000)]]
    step = 1 if name == "llama3" else 7
    samples = [f"a{c}1{c} {c}{c}\n{c}'{c} " for c in every[::step]] + texts[-6000:]
    reference = PRE_TOKENIZERS[name]
    expected = [[len(word) for word, _ in reference.pre_tokenize_str(text)] for text in samples]
    lines = tool("split", json.dumps(as_json(reference)), texts=samples).decode().splitlines()
    assert_same(samples, [list(map(int, line.split())) for line in lines], expected)


@pytest.mark.parametrize("name, ignore_merges", [("gpt2", False), ("gpt2", True), ("gpt2_prefix", False), ("digits", True),
                                                 ("qwen", False)])
def test_trained_byte_level_tokenizers(tool, texts, tmp_path, name, ignore_merges):
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=ignore_merges))
    reference.pre_tokenizer = PRE_TOKENIZERS[name]
    reference.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1500, show_progress=False, special_tokens=["<|endoftext|>", "<pad>"],
                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    reference.train_from_iterator(texts[:4000], trainer)
    reference.add_tokens(["def f", "def", "    ", "\u4e2d\u6587"])
    reference.save(str(tmp_path / "tokenizer.json"))
    reference = reference_json(tmp_path)
    samples = texts[:3000] + texts[-4000:] + ["    def f(x):    \u4e2d\u6587def", "<|endoftext|><pad>"]
    expected = json_ids(reference, samples)
    assert_same(samples, encode(tool, tmp_path, samples), expected)
    ids = expected[::3] + random_ids(reference.get_vocab_size(), 3000, seed=9)
    for mode, skip in (("decode", False), ("decode-skip", True)):
        assert_same(ids, decode(tool, tmp_path, ids, mode), reference.decode_batch(ids, skip_special_tokens=skip))


def test_pairs_merge_by_place_in_the_list_not_by_id(tool, texts, tmp_path):
    """A tokenizer whose merges stand in another order than its ids."""
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = PRE_TOKENIZERS["gpt2"]
    reference.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1200, show_progress=False,
                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    reference.train_from_iterator(texts[:3000], trainer)
    content = json.loads(reference.to_str())
    random.Random(10).shuffle(content["model"]["merges"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    samples = texts[:2000] + texts[-3000:]
    assert_same(samples, encode(tool, tmp_path, samples), json_ids(reference_json(tmp_path), samples))


# BOS before a text that is encoded as it is


BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
AROUND = {
    "none": None,
    "bytes": tokenizers.processors.ByteLevel(trim_offsets=True),
    "bos": tokenizers.processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)]),
    # Llama-3's form
    "bytes_bos": tokenizers.processors.Sequence([
        tokenizers.processors.ByteLevel(trim_offsets=True),
        tokenizers.processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, 0)])]),
}


def auto_ids(directory, texts):
    from transformers import AutoTokenizer

    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)(texts)["input_ids"]


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("around", AROUND)
def test_a_tokenizer_json_says_itself_whether_it_adds_bos(tool, tmp_path, around, add_bos, kind):
    """For every class, as transformers 5 has it. 4.57 follows add_bos_token where the class is a Llama tokenizer."""
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer, reference.decoder = PRE_TOKENIZERS["gpt2"], tokenizers.decoders.ByteLevel()
    reference.train_from_iterator(["hello world"], tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if AROUND[around]:
        reference.post_processor = AROUND[around]
    reference.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": kind, "bos_token": BOS, "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | ({} if add_bos is None else {"add_bos_token": add_bos})))
    samples = ["hello", "hello world", " a"]
    expected = auto_ids(tmp_path, samples)
    assert_same(samples, encode(tool, tmp_path, samples, "raw"), expected)
    assert all((ids[0] == 0) == around.endswith("bos") for ids in expected)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("with_json", [True, False])
def test_a_sentencepiece_model_adds_bos_as_its_config_or_json_says(tool, realdata, tmp_path, add_bos, with_json):
    source = realdata / "tok_llama2"
    (tmp_path / "tokenizer.model").symlink_to(source / "tokenizer.model")
    if with_json:  # which wins over a config that says the contrary
        content = json.loads((source / "tokenizer.json").read_text())
        if not add_bos:
            content["post_processor"] = None
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"add_bos_token": add_bos != with_json}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    samples = ["Hello", "Hello world"]
    expected = auto_ids(tmp_path, samples)
    assert_same(samples, encode(tool, tmp_path, samples, "raw"), expected)
    assert all((ids[0] == 1) == add_bos for ids in expected)


def test_llama_tokenizers_without_a_word_about_it_add_bos(tool, realdata, tmp_path):
    """As transformers 4 and Meta's own code have it; transformers 5 says so, too, and does not."""
    for name in ("tok_llama2", "tok_llama3"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.model").symlink_to(realdata / name / "tokenizer.model")
        [plain], [raw] = encode(tool, folder, ["Hello"]), encode(tool, folder, ["Hello"], "raw")
        assert raw == [int(tool("info", folder).split()[2]), *plain]
