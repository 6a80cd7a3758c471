"""The documentation as its reader meets it: every command of README.md and docs/*.md runs, every file that they give is
read, links lead somewhere, and what repeats the code agrees with it.

Commands stand in ```sh blocks and run page by page, in order, in a folder of their own (docs_sandbox.py). WAYS says of each
how: the first row that fits. A command without a row fails, and so does a row without a command.
"""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from docs_sandbox import Sandbox, World
from programs import ROOT, built

sys.path.insert(0, str(ROOT / "docs"))
import generate_settings

# Later tests look at what the pages' commands have recorded.
pytestmark = pytest.mark.xdist_group("docs")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# What a page has to make itself before its later commands use it.
ABSENT = {
    "fine-tune.md": ["models/Meta-Llama-3-8B", "data", "runs", "llama3.json"],
    "evaluate.md": ["benchmarks"],
}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a command runs: `change` rewrites it by (pattern, replacement), `add` comes behind it."""

    pattern: str
    name: str
    add: str = ""
    change: tuple = ()
    codes: tuple = (0,)


TINY = (r"models/Meta-Llama-3-8B", "models/tiny")
EIGHT_LAYERS = (r"models/Meta-Llama-3-8B", "runs/quickstart/dense/export")
TINY_RUN = (r"llama3\.json", "tiny-run.json")
A_TINY_RUN = (r"runs/llama3-8b-sa", "../tree/runs/llama3-8b-sa")  # where a page has none of its own
A_RUN_OF_8B = r"(CUDA_VISIBLE_DEVICES=\S+ )?satune train (llama3\.json|configs/llama)"
# (page or "" for all, how)
WAYS = [
    ("", Way(r"export PATH=\S+$", "as it is, for the commands after it", add='; printf %s "$PATH"')),
    ("", Way(r"\./launch/quickstart\.sh$", "whole in test_quickstart.py; here its help", add="--help")),
    ("", Way(r"\./tests/run\.sh$", "it runs these tests; here its help", add="--help")),
    ("", Way(r"\./launch/setup\.sh$", "tests/run.sh begins with it; here its help", add="--help")),
    ("", Way(r"source \.setup/environment\.sh$", "as it is, with nothing unpacked")),
    ("", Way(r"python3 launch/experiment\.py --experiment \S+ --output \S+$", "whole in test_experiment.py; here its help",
             add="--help")),
    ("", Way(r"cmake --preset \w+$", "tests/run.sh does; here the preset is read", add="-N")),
    ("", Way(r"cmake --build --preset", "tests/run.sh builds; here the preset is listed",
             change=((r"--preset (\w+) --target satune$", r"--list-presets | grep '\"\1\"'"),))),
    ("", Way(r"\.venv/bin/pip install ", "recorded, then checked")),
    ("", Way(r"\.venv/bin/hf ", "recorded, with tiny or empty downloads, then checked")),
    ("", Way(r"curl ", "recorded, with tiny downloads, then checked")),
    ("", Way(r"kubectl apply -f ", "recorded, then checked")),
    ("", Way(r"vllm serve ", "recorded, then checked")),
    ("", Way(r"pkill ", "recorded, then checked")),
    ("", Way(r"tensorboard --logdir ", "recorded, then checked")),
    ("", Way(r"(\w+=\S+ )*(launch/train(_nodes|_mpi)?\.sh|torchrun) ",
             "with a stand-in for what starts ranks, as a dry run of one",
             change=((r"HOSTFILE=hosts", "HOSTFILE=<(echo localhost)"),))),
    ("", Way(r"sbatch ", "the script with stand-ins for Slurm, as a dry run")),
    ("", Way(r"(tar -xf|mkdir -p) ", "as it is")),
    ("", Way(r".*cutoff_len=2048", "as it is: it is refused", codes=(2,))),
    ("", Way(r"satune train .*--print-config", "as it is")),
    ("resume.md", Way(r"satune train llama3\.json (--resume never|learning_rate=1e-5)$",
                      "a tiny run in the place of the large one: it is refused",
                      change=(TINY_RUN,), codes=(2,))),
    ("resume.md", Way(r"satune train llama3\.json .*--nproc-per-node 8",
                      "a tiny run in the place of the large one, on two ranks",
                      change=(TINY_RUN, (r"--nproc-per-node 8", "--nproc-per-node 2 gradient_accumulation_steps=1")))),
    ("resume.md", Way(r"satune train llama3\.json", "a tiny run in the place of the large one", change=(TINY_RUN,))),
    # The stand-in's tokenizer lacks the tokens of Llama-3's template.
    ("", Way(r"satune train full-sft\.json --dry-run", "dry run on empty weights of the true shape",
             change=((" --dry-run", " model_name_or_path=models/Meta-Llama-3-8B template=alpaca --dry-run"),))),
    ("", Way(A_RUN_OF_8B, "dry run on empty weights of the true shape", add="--dry-run", change=((r" --dry-run$", ""),))),
    ("", Way(r"satune train configs/quickstart-finetune\.json .*--dry-run$", "as it is, on an untrained model")),
    ("", Way(r"satune train configs/quickstart-finetune\.json", "two steps of an untrained model",
             add="max_steps=2 warmup_steps=1")),
    ("bench.md", Way(r"satune bench .* --decode", "a tiny architecture in the place of the large one", add="num_threads=2",
                     change=((r"configs/arch-\S+", "models/tiny/config.json"), (r"23-26", "1-1"), (r"--max-batch 64", "--max-batch 2")))),
    ("bench.md", Way(r"satune bench ", "a tiny architecture in the place of the large one", add="--steps 1 --warm-up 0",
                     change=((r"configs/arch-\S+", "models/tiny/config.json"), (r"--layers 2", "--layers 1"),
                             (r"--steps 5 ", ""), (r"--sequence-length \d+", "--sequence-length 32")))),
    ("bench.md", Way(r"\.venv/bin/python tests/bench/card\.py ", "its cases are run in test_bench.py; here they are listed",
                     add="--list", change=((r"\.venv/bin/python", sys.executable),))),
    ("", Way(r"satune plan ", "as it is: it reads headers")),
    ("choose-layers.md", Way(r"satune compare runs/dense ", "one tiny run in the place of three",
                             change=((r"runs/(dense|sa-\S+)", "runs/llama3-8b-sa"),))),
    ("", Way(r"satune analyze ", "an untrained model of eight layers in the place of the large one",
             change=(EIGHT_LAYERS, (r"--max-records 96", "--max-records 4")))),
    ("", Way(r"satune compare .*--max", "as it is; which side is better is chance in models without training",
             codes=(0, 1))),
    ("", Way(r"satune data .*--template llama3", "the templates that the stand-in's tokenizer has",
             change=(TINY, (r"--template llama3", "--template alpaca_stanford")))),
    ("", Way(r"satune data ", "as it is, with a tiny model's tokenizer", change=(TINY,), codes=(0, 1))),
    ("", Way(r"satune report ", "on a tiny run", change=(A_TINY_RUN,))),
    ("", Way(r"satune watch ", "on a tiny run, stopped after two seconds",
             change=(A_TINY_RUN, (r"^satune", "timeout --preserve-status -s INT 2 satune"), (r"--port \d+", "--port 0")))),
    ("", Way(r"\.venv/bin/python tests/parity/dump_reference\.py", "a tiny model in the place of the large one",
             change=(TINY, (r"\.venv/bin/python", sys.executable)))),
    ("", Way(r"satune diff .*--with-device cuda", "there may be no card", change=(TINY,), codes=(0, 1, 3))),
    ("", Way(r"satune diff ", "a tiny model in the place of the large one", change=(TINY,), codes=(0, 1))),
    ("", Way(r"echo .* \| satune generate", "a tiny model in the place of the large one", change=(TINY,))),
    ("", Way(r"satune (eval|generate|share|export) ", "a tiny model in the place of the large one", change=(TINY,))),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NAMED_FILE = re.compile(r"`([\w./-]+\.jsonl?)`[^`\n]*:\n```json\n(.*?)^```$", re.M | re.S)


def commands(block):
    """Of a ```sh block: without comments, continued lines joined."""
    joined = block.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#( .*)?$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def steps(page):
    """[(line, kind, text)] of a page in order: commands and Python blocks."""
    text, found = page.read_text(), []
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        if fence[1] == "sh":
            found += [(line + 1, "sh", command) for command in commands(fence[2])]
        elif fence[1] == "python":
            found.append((line + 1, "python", fence[2]))
        else:
            assert fence[1] in ("", "json"), f"{page.name}:{line}: a block of {fence[1]} has no way of being run"
    return found


def way_of(page, command):
    for only, way in WAYS:
        if only in ("", page.name) and re.match(way.pattern, command):
            return way
    raise AssertionError(f"{page.name}: no way of running: {command}")


def rewritten(way, command):
    for pattern, replacement in way.change:
        command = re.sub(pattern, replacement, command)
    return f"{command} {way.add}".strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("docs"), built("satune"))


@pytest.fixture(scope="module")
def sandboxes():
    return {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page, world, sandboxes):
    sandbox = sandboxes[page.name] = Sandbox(world.folder / page.stem, world, ABSENT.get(page.name, ()))
    for name, text in NAMED_FILE.findall(page.read_text()):
        (sandbox.folder / name).write_text(text)
    for line, kind, text in steps(page):
        if kind == "python":
            run, codes = sandbox.run(text, (sys.executable, "-c")), (0,)
        else:
            way = way_of(page, text)
            run, codes = sandbox.run(rewritten(way, text)), way.codes
            if text.startswith("export PATH="):
                sandbox.environment["PATH"] = run.stdout
        assert run.returncode in codes, f"{page.name}:{line}: {text}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"


def test_every_way_is_of_use():
    used = {way for page in PAGES for _, kind, text in steps(page) if kind == "sh" for way in [way_of(page, text)]}
    unused = [way for _, way in WAYS if way not in used]
    assert not unused


# ---- what was only recorded


@pytest.fixture(scope="module")
def recorded(sandboxes):
    if len(sandboxes) < len(PAGES):
        pytest.skip("test_every_command_runs has not run on all pages")
    return lambda name: [arguments for sandbox in sandboxes.values() for arguments in sandbox.recorded(name)]


def test_groups_stay_together(request):
    """Where tests are dealt out to workers, the mark above has to reach who deals them."""
    if hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith("@docs")


def options_of(arguments):
    return {word.split("=")[0] for word in arguments if word.startswith("-")}


def test_hub_commands_have_options_that_the_hub_client_knows(recorded):
    program = ROOT / ".venv" / "bin" / "hf"
    if not program.exists():
        pytest.skip(f"the hub's client is not at {program}")
    calls = recorded("hf")
    assert calls
    for words in {("download",), ("auth", "login")}:
        known = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True).stdout
        for arguments in calls:
            if tuple(arguments[: len(words)]) == words:
                assert all(option in known for option in options_of(arguments)), arguments
    assert {tuple(arguments[:1]) for arguments in calls} == {("download",), ("auth",)}


def test_downloads_are_over_https_and_fail_where_there_is_nothing(recorded):
    downloads = [arguments for arguments in recorded("curl") if "-d" not in arguments]
    assert downloads
    for arguments in downloads:
        assert arguments[:3] == ["-fL", "--create-dirs", "-o"] and arguments[-1].startswith("https://"), arguments


def test_what_asks_the_server_is_json(recorded):
    (asked,) = [arguments for arguments in recorded("curl") if "-d" in arguments]
    body = json.loads(asked[asked.index("-d") + 1])
    (served,) = recorded("vllm")
    assert served[:2] == ["serve", body["model"]]
    assert options_of(served) == {"--trust-remote-code", "--model-impl"}
    assert asked[3:5] == ["-H", "Content-Type: application/json"]


def test_files_that_other_programs_are_given_exist(recorded):
    for arguments in recorded("kubectl"):
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file(), arguments
    for arguments in recorded("pip"):
        assert arguments[0] == "install"
        if "-r" in arguments:
            assert (ROOT / arguments[arguments.index("-r") + 1]).is_file(), arguments


def test_signals_go_to_one_process(recorded):
    """To every process of that name they would reach each rank twice: from here, and from what started it."""
    calls = recorded("pkill")
    assert calls and all(arguments[1:] == ["-o", "-x", "satune"] for arguments in calls)
    assert {arguments[0] for arguments in calls} == {"-USR1", "-TERM"}


# ---- what repeats the code


def test_settings_page_is_what_the_program_prints():
    printed = subprocess.run([built("satune"), "train", "--print-config"], capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == generate_settings.page(printed), "run docs/generate_settings.py"


def settings():
    return set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "settings.md").read_text(), re.M))


def synonyms():
    """{key of another trainer: what the program says it is called here}"""
    code = (ROOT / "trainer" / "settings_synonyms.cpp").read_text()
    found = re.findall(r'\{"([^"]+)", "((?:[^"\\]|\\.)*)"\}', code)
    assert len(found) > 100
    return dict(found)


def foreign_rows():
    """[(keys, text)] of the tables that translate."""
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", (ROOT / "docs" / "coming-from.md").read_text(), re.M)
    return [(re.findall(r"`([^`]+)`", keys), text) for keys, text in rows]


def test_translated_keys_are_what_the_program_says():
    known, own = synonyms(), settings()
    for keys, text in foreign_rows():
        for key in keys:
            if key in own:
                assert "the same" in text or f"`{key}`" in text, f"{key} is a setting, the page says: {text}"
                continue
            assert key in known, f"{key}: the program does not know it"
            here = known[key]
            if here.startswith("no such key"):
                assert text.startswith("none: "), f"{key}: {here}; the page says: {text}"
            else:
                names = [name for name in re.findall(r"[\w.]+", here) if name in own | {"columns"}]
                assert names and all(f"`{name}`" in text for name in names), f"{key}: {here}; the page says: {text}"


def test_every_synonym_is_on_the_page():
    listed = {key for keys, _ in foreign_rows() for key in keys}
    assert not set(synonyms()) - listed


def test_settings_that_pages_name_exist():
    """In the guides `key=value` and `key: value` in code are settings, or variables and options of programs."""
    own = settings()
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)(?:=|: )", text):
            assert key in own | {"key", "model_type", "trust_remote_code"}, f"{page.name}: {key}"


def test_readme_lists_every_command():
    text = subprocess.run([built("satune"), "--help"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^  (\w+) {2,}", text[text.index("Subcommands:") :], re.M)
    assert len(names) >= 10
    readme = (ROOT / "README.md").read_text()
    for name in names:
        assert re.search(rf"^\| `{name}[ `]", readme, re.M), f"README.md's table lacks {name}"


# ---- links


def anchor(title):
    """GitHub's name of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower().replace("`", "")).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, name = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if name:
            titles = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.M)
            assert name in map(anchor, titles), f"{page.name}: {target}"


def test_every_guide_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, page.name


def test_named_paths_exist():
    """Paths of the checkout in code spans: launch/..., configs/..., tests/..., docs/..., trainer/..., model/..."""
    for page in PAGES:
        folders = "launch|configs|tests|docs|trainer|model|evaluation|data"
        for path in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", page.read_text()):
            if not re.match(r"data/(heldout|train|book|alpaca)", path):
                assert (ROOT / path).exists(), f"{page.name}: {path}"
