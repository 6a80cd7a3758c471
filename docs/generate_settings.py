"""docs/settings.md from what `satune train --print-config` prints: the settings' table in the code is their one source.

    python3 docs/generate_settings.py build/release/satune > docs/settings.md
"""

import re
import subprocess
import sys

HEAD = """# Settings
Every key of a training config. This page is written by `docs/generate_settings.py` from `satune train --print-config`; a
test compares it with what the program prints, so change the code, not the page.

A config is one JSON file; `//` comments are allowed. `key=value` or `--key=value` on the command line replaces a key, with
a dot inside groups (`sharing.layers=23-26`). An unknown key is an error that names the nearest known one, or what
[other trainers' key](coming-from.md) is called here.
```sh
export PATH=$PWD/build/release:$PATH
satune train --print-config > config.json                                    # all keys with their defaults
satune train configs/llama3-8b-sa.json learning_rate=1e-5 --print-config     # what a run would take
```
"""
SECTION = re.compile(r"^  // --- (.+) ---$")
COMMENT = re.compile(r"^ +// (.+) \[([^\[]+; (?:default .+|required))\]$")
GROUP = re.compile(r'^  "(\w+)": \{$')
KEY = re.compile(r'^ +"(\w+)": ')


def cell(text):
    return text.replace("|", "\\|")


def page(printed):
    """The Markdown for one print-out; ValueError for a line that is none of what it knows."""
    lines, group, meaning = [HEAD], "", None
    for line in printed.splitlines():
        if line in ("{", "}", ""):
            continue
        if found := SECTION.match(line):
            lines.append(f"\n## {found[1]}\n| key | values | default | meaning |\n|---|---|---|---|\n")
        elif found := COMMENT.match(line):
            meaning = found
        elif found := GROUP.match(line):
            group = found[1] + "."
        elif line.startswith("  }"):
            group = ""
        elif found := KEY.match(line):
            values, _, default = meaning[2].rpartition("; ")
            default = "required" if default == "required" else f"`{default.removeprefix('default ')}`"
            lines.append(f"| `{group}{found[1]}` | {cell(values)} | {default} | {cell(meaning[1])} |\n")
        else:
            raise ValueError(f"a line that is no setting: {line}")
    return "".join(lines)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python3 docs/generate_settings.py SATUNE")
    run = subprocess.run([sys.argv[1], "train", "--print-config"], capture_output=True, text=True, check=True)
    print(page(run.stdout), end="")


if __name__ == "__main__":
    main()
