"""Everything that only a card can tell, in one command: whether it computes what the CPU does, and how fast.

    .venv/bin/python tests/bench/card.py --output runs/card

First the C++ tests that look at a card, and whether steps repeat their bits; then `satune bench` at the shapes and in the modes
that matter for Llama-3-8B on one large card, each command beside its figures; then transformers. What is measured is
written at once, so that a run that is broken off, or whose --minutes are over, leaves what it has: a JSON file for each case
and report.md. Aims are this project's for one H200 and stand beside figures of the whole model only. Cases that fail are
reported and the next one runs; only failed checks make the exit code 1.

On a machine without a card `--device cpu --architecture configs/quickstart-arch.json --lengths 64 32` shows that it runs.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CARD_TESTS = "*Cuda.*:*CudaTrainer.*:*CardAttention.*:ProfileOnCard.*:Fp8Trial.*:NcclGroup.*"
SMALL = ("master_weights=none", "optimizer_moments=bf16")  # 8 bytes a parameter, weights and gradients included
LONGEST_CASE = 300  # seconds


@dataclasses.dataclass
class Case:
    name: str
    shows: str
    arguments: tuple
    aim: float | None = None  # tokens/s
    script: str | None = None  # instead of `satune bench`


def cases(options):
    long, short = options.lengths
    rows = max(1, long // short)
    auto, free = ("--gradient-checkpointing", "auto"), ("deterministic=false",)
    at_long = ("--sequence-length", str(long))
    at_short = ("--sequence-length", str(short), "--micro-batch", str(rows))
    packed = (*at_long, "--document-length", str(short))
    shared = ("--sharing", options.sharing)
    peer = ("--device", options.device, "--micro-batch", "1", "--layers", str(options.peer_layers),
            "--program", options.program)
    return [
        Case("long", "8 bytes a parameter", (*at_long, *auto, *SMALL, *free), 12000),
        Case("long-deterministic", "the default: attention's backward in a fixed order", (*at_long, *auto, *SMALL)),
        Case("short", "8 bytes a parameter", (*at_short, *auto, *SMALL, *free), 13500),
        Case("short-deterministic", "the default", (*at_short, *auto, *SMALL)),
        Case("long-masters", "masters and moments as fp32", (*at_long, *auto, "master_weights=split", *free), 11500),
        Case("long-shared", "Shared Attention beside dense", (*at_long, *shared, *auto, *SMALL, *free)),
        Case("short-shared", "Shared Attention beside dense", (*at_short, *shared, *auto, *SMALL, *free)),
        Case("long-fp8", "8-bit products", (*at_long, *auto, *SMALL, *free, "fp8=true"), 16000),
        Case("short-fp8", "8-bit products", (*at_short, *auto, *SMALL, *free, "fp8=true"), 19000),
        Case("packed", "packed documents", (*packed, *auto, *SMALL, *free)),
        Case("packed-deterministic", "packed documents, the default", (*packed, *auto, *SMALL)),
        Case("long-recomputing", "everything computed again", (*at_long, *SMALL, *free)),
        Case("long-selective", "norms and SwiGLU computed again",
             (*at_long, "--gradient-checkpointing", "selective", *SMALL, *free)),
        Case("long-offloading", "activations on the host", (*at_long, *SMALL, *free, "activation_offloading=true")),
        Case("long-8bit", "no masters, 8-bit moments: for a card of 80 GB",
             (*at_long, "master_weights=none", "optimizer_moments=8bit", *free)),
        Case("long-optimizer-offload", "masters and moments on the host", (*at_long, "optimizer_offload=cpu", *free)),
        Case("long-accumulated", "two micro-batches",
             (*at_long, "--gradient-accumulation-steps", "2", *auto, *SMALL, *free)),
        Case("decode", "generation, dense and shared", ("--decode", *shared, "--max-batch", str(options.max_batch))),
        Case("peer-long", f"transformers, {options.peer_layers} layers", (*at_long, *peer), script="train_peer.py"),
        Case("peer-short", f"transformers, {options.peer_layers} layers",
             ("--sequence-length", str(short), *peer), script="train_peer.py"),
    ]


def command_of(case, options):
    if case.script:
        return [sys.executable, str(ROOT / "tests" / "bench" / case.script), options.architecture, *case.arguments,
                "--steps", str(options.steps), "--turns", "1"]
    cut = ["--layers", str(options.layers)] if options.layers else []
    steps = [] if "--decode" in case.arguments else ["--steps", str(options.steps)]
    return [options.program, "bench", options.architecture, "--device", options.device, *cut, *steps, *case.arguments,
            "--json"]


def shown(command):
    return shlex.join(str(word).removeprefix(f"{ROOT}/") for word in command)


def call(command, seconds):
    """(standard output, None) or (None, what went wrong)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, seconds))
    except subprocess.TimeoutExpired:
        return None, f"not done after {seconds:.0f} s"
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        return None, f"exit code {done.returncode}: {lines[-1]}"
    return done.stdout, None


# ---- checks


def card_tests(program, options):
    """(passed?, line for the report)"""
    path = pathlib.Path(options.program).parent / program
    if not path.exists():
        return True, f"{program}: not built, skipped"
    command = [str(path), f"--gtest_filter={CARD_TESTS}", "--gtest_brief=1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_CASE)
    except subprocess.TimeoutExpired:
        return False, f"{program}: FAILED, not done after {LONGEST_CASE} s"
    counts = dict(re.findall(r"\[ +(PASSED|SKIPPED|FAILED) +\] (\d+) test", done.stdout)[::-1])
    failed = sorted(set(re.findall(r"\[ +FAILED +\] (\S+?),? ", done.stdout + " ")))
    words = ", ".join(f"{number} {word.lower()}" for word, number in counts.items()) or f"exit code {done.returncode}"
    if done.returncode == 0:
        return True, f"{program}: {words}"
    (pathlib.Path(options.output) / f"{program}.log").write_text(done.stdout + done.stderr)
    return False, f"{program}: FAILED ({words}): {' '.join(failed)}; see {program}.log"


def steps_repeat(options):
    """Two processes, the same steps: the loss after the last update has the bits of all gradients in it."""
    length = str(options.lengths[0])
    command = [options.program, "bench", options.architecture, "--device", options.device, "--layers", "2", "--steps", "5",
               "--sequence-length", length, "--document-length", str(options.lengths[1]), "--json"]
    losses = []
    for _ in range(2):
        text, fault = call(command, LONGEST_CASE)
        if fault:
            return False, f"steps repeat: FAILED, {fault}"
        losses.append(json.loads(text)["runs"][0]["final_loss"])
    same = losses[0] == losses[1]
    return same, f"steps repeat their bits: {'yes' if same else f'FAILED, losses {losses[0]!r} and {losses[1]!r}'}"


# ---- report


def gigabytes(count):
    return f"{count / 1e9:.1f} GB"


def training_rows(case, result, whole):
    rows = []
    for run in [*result["runs"], *([result["satune"] | {"name": "satune"}] if "satune" in result else [])]:
        memory = run["memory"]
        planned = memory.get("planned_bytes")
        used = memory["peak_bytes"] - memory.get("before_bytes", 0)
        rows.append([case.name, run.get("sharing") or run["name"], f"{run['tokens_per_s']:,.0f}",
                     f"{case.aim:,.0f}" if case.aim and whole and run["name"] == "dense" else "",
                     f"{100 * run['mfu']:.1f} %" if run.get("mfu") else "", gigabytes(used),
                     gigabytes(planned) if planned else "", run.get("attention", "")])
    return rows


def decoding_rows(case, result):
    return [[f"{case.name}, batch {batch['batch']}", run["sharing"] or run["name"], f"{batch['tokens_per_s']:,.0f}", "", "",
             gigabytes(batch["kv_bytes"]), "", ""] for run in result["runs"] for batch in run["batches"]]


def speed(results, name, run=0):
    return results[name]["runs"][run]["tokens_per_s"] if name in results else None


def ratios(results):
    """What two cases say together."""
    lines = []
    for name in ("long", "short", "packed"):
        free, fixed = speed(results, name), speed(results, f"{name}-deterministic")
        if free and fixed:
            lines.append(f"deterministic=true costs {100 * (free / fixed - 1):.1f} % ({name})")
        eight = speed(results, f"{name}-fp8")
        if free and eight:
            lines.append(f"fp8 is {eight / free:.2f} times as fast ({name})")
        shared = results.get(f"{name}-shared")
        if shared:
            dense, sharing = shared["runs"]
            saved = dense["flops_per_token"] / sharing["flops_per_token"]
            lines.append(f"Shared Attention is {shared['sharing_speed_ratio']:.3f} times as fast as dense ({name}); its "
                         f"smaller FLOPs would make it {saved:.3f}")
    for name, result in results.items():
        if "satune_speed_ratio" in result:
            lines.append(f"satune is {result['satune_speed_ratio']:.2f} times as fast as transformers and takes "
                         f"{result['satune_memory_ratio']:.2f} of its memory ({name})")
    return lines


def segment_table(run):
    """The parts that are furthest from their floor, by the time that is lost there."""
    parts = [part for part in run["segments"] if part.get("floor_ms")]
    parts.sort(key=lambda part: part["floor_ms"] - part["ms"])
    rows = [[f"{part['segment']} {part['pass']} {part['part']}", f"{part['ms']:.2f}", f"{part['floor_ms']:.2f}",
             f"{100 * part['floor_ms'] / part['ms']:.0f} %" if part["ms"] else ""] for part in parts[:16]]
    return table(["part", "ms", "floor ms", "of the floor's rate"], rows)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def report(options, checks, chosen, results, faults, started):
    whole = options.layers is None and options.device != "cpu"
    rows = []
    for case in chosen:
        result = results.get(case.name)
        if result:
            rows += decoding_rows(case, result) if result.get("kind") == "decoding" else training_rows(case, result, whole)
    text = f"# {options.architecture} on {options.described}\n{started}\n\n## Checks\n"
    text += "".join(f"- {line}\n" for line in checks) or "- none\n"
    text += "\n## Speed and memory\n" + table(
        ["case", "run", "tokens/s", "aim", "MFU", "memory used", "planned", "attention"], rows)
    text += "".join(f"- {line}\n" for line in ratios(results))
    text += "".join(f"- {name}: {fault}\n" for name, fault in faults.items())
    if results.get("long"):
        text += "\n## Where the long rows' step is furthest from its floor\n" + segment_table(results["long"]["runs"][0])
    text += "\n## Commands\n" + "".join(f"- {case.name} ({case.shows}): `{shown(command_of(case, options))}`\n"
                                         for case in chosen if case.name in results or case.name in faults)
    (pathlib.Path(options.output) / "report.md").write_text(text)
    return text


def described(options):
    if options.device == "cpu":
        return "the CPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "a card"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build" / "release" / "satune"))
    parser.add_argument("--architecture", default=str(ROOT / "configs" / "arch-llama3-8b.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lengths", type=int, nargs=2, default=(8192, 1024), metavar=("LONG", "SHORT"),
                        help="tokens of the two rows; SHORT divides LONG")
    parser.add_argument("--layers", type=int, help="of the cut model, where the whole one does not fit")
    parser.add_argument("--peer-layers", type=int, default=8, help="of both sides beside transformers")
    parser.add_argument("--sharing", default="23-26")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30, help="no case begins after them")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="checks, or names that --list shows")
    parser.add_argument("--output", default="runs/card", help="folder of the results")
    parser.add_argument("--list", action="store_true", help="the cases and their commands")
    options = parser.parse_args()
    if options.lengths[0] % options.lengths[1] != 0:
        parser.error(f"--lengths: found {options.lengths[0]} {options.lengths[1]}, expected SHORT to divide LONG")
    known = ["checks", *(case.name for case in cases(options))]
    for name in options.only or []:
        if name not in known:
            parser.error(f"--only: found {name}, expected one of {', '.join(known)}")
    if not options.list and not pathlib.Path(options.program).exists():
        parser.error(f"--program: found no {options.program}, expected the built program")
    return options


def main():
    options = parse_arguments()
    chosen = [case for case in cases(options) if not options.only or case.name in options.only]
    if options.list:
        for case in chosen:
            print(f"{case.name} ({case.shows}): {shown(command_of(case, options))}")
        return 0
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    options.described = described(options)
    started, begin = time.strftime("%Y-%m-%d %H:%M"), time.monotonic()
    left = lambda: 60 * options.minutes - (time.monotonic() - begin)
    checks, results, faults, sound = [], {}, {}, True
    if not options.only or "checks" in options.only:
        for passed, line in (card_tests("test_model", options), card_tests("test_trainer", options), steps_repeat(options)):
            print(line, flush=True)
            checks.append(line)
            sound = sound and passed
    for case in chosen:
        if left() <= 0:
            faults[case.name] = "left out, the minutes are over"
            continue
        text, fault = call(command_of(case, options), min(LONGEST_CASE, left()))
        if fault:
            faults[case.name] = fault
            print(f"{case.name}: {fault}", flush=True)
        else:
            results[case.name] = json.loads(text)
            (folder / f"{case.name}.json").write_text(text)
            print(f"{case.name}: {results[case.name]['runs'][0].get('tokens_per_s', 0):,.0f} tokens/s", flush=True)
        report(options, checks, chosen, results, faults, started)
    print("\n" + report(options, checks, chosen, results, faults, started))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
