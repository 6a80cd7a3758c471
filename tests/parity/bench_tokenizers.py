"""Speed of satune's tokenizers beside the reference libraries, one thread each, on the Alpaca texts, in one run:
python tests/parity/bench_tokenizers.py   (SATUNE_BUILD_DIR, SATUNE_REALDATA as in the tests)
CPU seconds, the fastest of 5 rounds; a ratio above 1 means that satune is faster."""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import json
import pathlib
import subprocess
import tempfile
import time

import sentencepiece
import tiktoken
import tiktoken.load
import tokenizers
from test_tokenizers import LLAMA3_PATTERN, LLAMA3_SPECIALS, ROOT, alpaca_texts, as_bytes
from transformers.convert_slow_tokenizer import TikTokenConverter

REALDATA = pathlib.Path(os.environ.get("SATUNE_REALDATA", ROOT.parent / "shared" / "realdata"))
TOOL = pathlib.Path(os.environ.get("SATUNE_BUILD_DIR", ROOT / "build" / "release")) / "tokenizer_tool"


def fastest(encode, texts):
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        tokens = sum(len(encode(text)) for text in texts)
        best = min(best, time.process_time() - start)
    return best, tokens


def ours(directory, texts):
    stdin = b"".join(b"%d\n%s" % (len(t), t) for t in map(as_bytes, texts))
    seconds, tokens = subprocess.run([TOOL, "bench", directory], input=stdin, capture_output=True, check=True).stdout.split()
    return float(seconds), int(tokens)


def main():
    texts = alpaca_texts(REALDATA)
    megabytes = sum(len(as_bytes(text)) for text in texts) / 1e6
    llama3, llama2 = REALDATA / "tok_llama3", REALDATA / "tok_llama2"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        TikTokenConverter(str(llama3 / "tokenizer.model"), extra_special_tokens=LLAMA3_SPECIALS).converted().save(str(path))
        json3 = tokenizers.Tokenizer.from_file(str(path))
        json2 = tokenizers.Tokenizer.from_file(str(llama2 / "tokenizer.json"))
        ranks = tiktoken.load.load_tiktoken_bpe(str(llama3 / "tokenizer.model"))
        tik = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
        piece = sentencepiece.SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))
        rows = [
            ("llama3 tokenizer.json", "tokenizers", ours(folder, texts), fastest(lambda t: json3.encode(t, add_special_tokens=False).ids, texts)),
            ("llama3 rank file", "tiktoken", ours(llama3, texts), fastest(tik.encode_ordinary, texts)),
            ("llama2", "tokenizers", ours(llama2, texts), fastest(lambda t: json2.encode(t, add_special_tokens=False).ids, texts)),
            ("llama2", "sentencepiece", ours(llama2, texts), fastest(piece.encode, texts)),
        ]
    print(f"{len(texts)} texts, {megabytes:.1f} MB")
    for name, reference, (mine, tokens), (theirs, their_tokens) in rows:
        print(json.dumps({"tokenizer": name, "reference": reference, "satune_MB_per_s": round(megabytes / mine, 1),
                          "reference_MB_per_s": round(megabytes / theirs, 1), "ratio": round(theirs / mine, 2),
                          "tokens": tokens, "reference_tokens": their_tokens}))


main()
