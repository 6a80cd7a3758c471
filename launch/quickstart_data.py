"""Instruction records for the quickstart: seeded list tasks in Alpaca form, and a held-out part.

Each answer is worked out of words drawn at random, and no input of the held-out part occurs in the training
part: a model that answers it has learned the task and not the answers.
"""

import argparse
import json
import pathlib
import random
import sys

WORDS = (
    "apple bread chair cloud dance eagle flame grape heart house juice knife lemon mango night ocean peach "
    "queen river snake table uncle voice water bird fish tree moon"
).split()

TRAINING_RECORDS = 40_000
HELD_OUT_RECORDS = 80  # of each family


def after(words, rng):
    here = rng.randrange(len(words) - 2)
    return f"List the words after {words[here]}.", words[here + 1 :]


def remove(words, rng):
    gone = rng.choice(words)
    return f"Remove the word {gone}.", [word for word in words if word != gone]


def reverse(words, rng):
    return "Reverse the list.", words[::-1]


def rotate(words, rng):
    return "Move the first word to the end.", [*words[1:], words[0]]


def sort(words, rng):
    return "Sort the list.", sorted(words)


def swap(words, rng):
    return "Swap the first and the last word.", [words[-1], *words[1:-1], words[0]]


# Each makes an instruction and its answer from a list of words.
FAMILIES = {
    "after": after,
    "remove": remove,
    "reverse": reverse,
    "rotate": rotate,
    "sort": sort,
    "swap": swap,
}


def record(family, rng):
    words = rng.sample(WORDS, rng.randint(3, 6))
    instruction, answer = FAMILIES[family](words, rng)
    return {"instruction": instruction, "input": " ".join(words), "output": " ".join(answer)}


def held_out_records(seed):
    """Family -> its held-out records, no input twice."""
    rng = random.Random(f"held-out {seed}")
    inputs, held_out = set(), {}
    for family in sorted(FAMILIES):
        held_out[family] = []
        while len(held_out[family]) < HELD_OUT_RECORDS:
            candidate = record(family, rng)
            if candidate["input"] not in inputs:
                inputs.add(candidate["input"])
                held_out[family].append(candidate)
    return held_out


def training_records(seed, held_out):
    rng = random.Random(f"training {seed}")
    kept_away = {r["input"] for records in held_out.values() for r in records}
    families, records = sorted(FAMILIES), []
    while len(records) < TRAINING_RECORDS:
        candidate = record(rng.choice(families), rng)
        if candidate["input"] not in kept_away:
            records.append(candidate)
    return records


def write(path, records):
    lines = ",\n".join(json.dumps(r) for r in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_all(folder, seed):
    """train.json, heldout.json (all families) and heldout-FAMILY.json."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = held_out_records(seed)
    training = training_records(seed, held_out)
    write(folder / "train.json", training)
    write(folder / "heldout.json", [r for family in sorted(held_out) for r in held_out[family]])
    for family, records in held_out.items():
        write(folder / f"heldout-{family}.json", records)
    print(
        f"{len(training):,} training records and {HELD_OUT_RECORDS} held-out ones of each of "
        f"{len(FAMILIES)} families in {folder}"
    )


def show(folder, count):
    """Instruction, tab, input of the first held-out record of `count` families, a line each."""
    for path in sorted(folder.glob("heldout-*.json"))[:count]:
        first = json.loads(path.read_text(encoding="utf-8"))[0]
        print(first["instruction"], first["input"], sep="\t")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--show", type=int, metavar="N", help="print N held-out instructions that are there")
    arguments = parser.parse_args()
    if arguments.show is None:
        write_all(arguments.folder, arguments.seed)
    else:
        show(arguments.folder, arguments.show)
    return 0


if __name__ == "__main__":
    sys.exit(main())
