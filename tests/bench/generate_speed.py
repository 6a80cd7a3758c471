"""Speed of `satune generate` beside transformers with its KV cache: the same model, the same prompts, greedy.

    .venv/bin/python tests/bench/generate_speed.py --program build/release/satune --threads 2

Random models of 19M and about 100M parameters, prompts of 32 tokens, 64 tokens of answer each, batches of 1, 4 and 8.
Tokens of answers a second, the time of the prompts included: of satune what `generate --prompts` prints (loading left
out), of transformers the time of one generate() call after one to warm up. The two take turns, so that a machine whose
speed drifts drifts under both; the median counts. Reports, never fails.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from train_speed import ARCH, words

SHAPES = {
    "19M": ARCH,
    "100M": ARCH | {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
                    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16000},
}
PROMPT, ANSWER = 32, 64


def peer(request):
    """One process of transformers: tokens a second for every batch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(request["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[request["precision"]]
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype, trust_remote_code=True).eval()
    speeds = {}
    for batch in request["batches"]:
        ids = torch.tensor([request["ids"]] * batch)
        arguments = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=2, min_new_tokens=2, **arguments)
            start = time.perf_counter()
            out = model.generate(ids, max_new_tokens=ANSWER, min_new_tokens=ANSWER, **arguments)
            speeds[batch] = batch * ANSWER / (time.perf_counter() - start)
        assert out.shape[1] == len(request["ids"]) + ANSWER
    print("\n" + json.dumps(speeds))


def call(*command, **environment):
    done = subprocess.run([str(part) for part in command], env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done


def make_model(program, folder, shape, sharing):
    folder.mkdir()
    (folder / "arch.json").write_text(json.dumps(SHAPES[shape]))
    (folder / "text.txt").write_text(words(60000))
    model = folder / "model"
    call(program, "init", folder / "arch.json", model, "--train-tokenizer", folder / "text.txt")
    if sharing:
        call(program, "share", model, folder / "shared", "--sharing", sharing)
        model = folder / "shared"
    return model


def prompt_of(model):
    """A text of PROMPT tokens with BOS, and the tokens."""
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    ids = tokenizer.encode(words(200))[: PROMPT - 1]
    text = tokenizer.decode(ids)
    return text, [1, *tokenizer.encode(text)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/release/satune")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shapes", default="19M,100M")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--sharing", default="", help="layers that share, on both sides")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(json.loads(options.peer))
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    batches = [int(batch) for batch in options.batches.split(",")]

    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes.split(","):
            model = make_model(options.program, pathlib.Path(folder) / shape, shape, options.sharing)
            text, ids = prompt_of(model)
            for precision in options.precisions.split(","):
                request = json.dumps({"model": str(model), "threads": options.threads, "precision": precision,
                                      "ids": ids, "batches": batches})
                ours, theirs = {batch: [] for batch in batches}, {batch: [] for batch in batches}
                for _ in range(options.turns):
                    for batch in batches:
                        prompts = model / "prompts.jsonl"
                        prompts.write_text((json.dumps({"prompt": text}) + "\n") * batch)
                        done = call(options.program, "generate", model, "--prompts", prompts, "--batch-size", batch,
                                    "--max-new-tokens", ANSWER, "--precision", precision, "--device", "cpu", **threads)
                        count, speed = re.search(r"^(\d+) tokens in .* s, ([\d.]+) tokens/s", done.stderr, re.M).groups()
                        assert int(count) == batch * ANSWER, done.stderr
                        ours[batch].append(float(speed))
                    out = call(sys.executable, __file__, "--peer", request, HF_HUB_OFFLINE="1", **threads)
                    speeds = json.loads(out.stdout.splitlines()[-1])
                    for batch in batches:
                        theirs[batch].append(speeds[str(batch)])
                for batch in batches:
                    a, b = statistics.median(ours[batch]), statistics.median(theirs[batch])
                    print(f"{shape}, {precision}, batch {batch}, {options.threads} threads: satune {a:.1f} tokens/s, "
                          f"transformers {b:.1f} tokens/s, ratio {a / b:.2f}", flush=True)


if __name__ == "__main__":
    main()
