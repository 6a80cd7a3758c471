"""satune analyze against NumPy over transformers' eager attention weights and hidden states, on a random model and,
where it is there, on a trained one; its losses against eval and against the torch oracle; its files and errors."""

import contextlib
import itertools
import json
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree

import make_models
import numpy as np
import pytest
import sentencepiece
import torch
from browser import Browser, check_page
from oracle import Oracle
from pictures import check_pixels, png_pixels
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

LENGTH = 48
TEXT = "\n".join(f"Lily saw {count} red balls, and the dog ran {count + 1} times around the park." for count in range(40))


def call(program, *arguments, code=0):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def a_browser(folder):
    browser = Browser(folder / "profile")
    try:
        yield browser
    finally:
        browser.close()


def analyze(program, output, *arguments):
    call(program, "analyze", *arguments, "--output", output, "--precision", "fp32", "--device", "cpu")
    return json.loads((output / "analysis.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("analyze")


@pytest.fixture(scope="module")
def text(folder):
    path = folder / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def records(folder):
    path = folder / "records.json"
    path.write_text(json.dumps([{"instruction": f"Count to {n}", "output": " ".join(map(str, range(n)))} for n in range(3, 11)]))
    return path


@pytest.fixture(scope="module")
def random_model(satune, folder, text):
    """Random weights under which attention is far from uniform, grouped heads, and a tokenizer of its own."""
    arch = folder / "arch.json"
    arch.write_text(json.dumps({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}))
    out = folder / "random"
    call(satune, "init", arch, out, "--train-tokenizer", text, "--vocab-size", 300)
    vocabulary = json.loads((out / "config.json").read_text())["vocab_size"]
    make_models.write_model(out, "gqa", vocab_size=vocabulary, max_position_embeddings=512)
    return out


@pytest.fixture(scope="module")
def analysis(satune, folder, random_model, text):
    return analyze(satune, folder / "out", random_model, "--data", text, "--max-length", LENGTH, "--max-records", 3,
                   "--loss-budget", "1000%")


def pieces(model, text, count):
    """Token ids of the first pieces, as the command cuts them."""
    ids = [1] + sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model")).encode(text)
    return [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)][:count]


# The oracle


def outputs(model, ids):
    """Attention weights [layers, heads, T, T] and hidden states (the last one before the final norm)."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager",
                                                   local_files_only=True)
    last = []
    network.model.norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    with torch.no_grad():
        found = network(torch.tensor([ids]), output_attentions=True, output_hidden_states=True, use_cache=False)
    states = [state[0] for state in found.hidden_states[:-1]] + [last[0][0]]
    return (np.stack([weights[0].double().numpy() for weights in found.attentions]),
            [state.double().numpy() for state in states])


def cosines(weights):
    """[layers, heads, layers, heads]"""
    layers, heads = weights.shape[:2]
    flat = weights.reshape(layers * heads, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return (flat @ flat.T).reshape(layers, heads, layers, heads)


def weighted_cumulative_variance(rows):
    """By eigenvalues, as it is defined: each component's cumulative share of variance, weighted by its own."""
    values = np.linalg.eigvalsh(np.cov(rows, rowvar=False))[::-1]
    share = np.clip(values, 0, None) / np.clip(values, 0, None).sum()
    return float((share * np.cumsum(share)).sum())


def check_against_numpy(found, model, documents):
    weights, states = zip(*[outputs(model, ids) for ids in documents])
    expected = np.mean([cosines(each) for each in weights], axis=0)
    layers, heads = expected.shape[:2]
    by_head = np.stack([expected[:, h, :, h] for h in range(heads)])
    assert np.abs(np.array(found["similarity"]["heads"]) - by_head).max() < 1e-5
    assert np.abs(np.array(found["similarity"]["layers"]) - by_head.mean(0)).max() < 1e-5

    isotropy = np.mean([[[weighted_cumulative_variance(head) for head in layer] for layer in each] for each in weights], 0)
    assert np.abs(np.array(found["weighted_cumulative_variance"]["attention"]) - isotropy).max() < 1e-4
    hidden = np.mean([[weighted_cumulative_variance(state) for state in each] for each in states], 0)
    assert np.abs(np.array(found["weighted_cumulative_variance"]["hidden_states"]) - hidden).max() < 1e-4

    pairs = {(pair["anchor"], pair["layer"]): pair for pair in found["head_assignments"]}
    assert set(pairs) == {(a, l) for l in range(layers) for a in range(l)}
    for (anchor, layer), pair in pairs.items():
        value = expected[layer][:, anchor]
        direct = float(np.trace(value)) / heads
        best = max(sum(value[h, p[h]] for h in range(heads)) for p in itertools.permutations(range(heads))) / heads
        assert sorted(pair["heads"]) == list(range(heads))
        assert abs(sum(value[h, pair["heads"][h]] for h in range(heads)) / heads - best) < 1e-5
        assert abs(pair["similarity"] - direct) < 1e-5 and abs(pair["assigned_similarity"] - best) < 1e-5
        assert abs(pair["gain"] - (best - direct)) < 1e-5


def test_measures_are_those_of_numpy(analysis, random_model):
    found = analysis["models"][0]
    documents = pieces(random_model, TEXT, 3)
    assert found["tokens"] == sum(map(len, documents)) and found["documents"] == 3
    check_against_numpy(found, random_model, documents)
    # Neither all equal nor all alike: the comparison says something.
    similarity = np.array(found["similarity"]["layers"])
    assert similarity.min() < 0.9 and found["head_assignments"][0]["gain"] > 0.01


def test_a_trained_model_measures_as_in_numpy(satune, tmp_path, stories):
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    data = tmp_path / "story.txt"
    data.write_text(story)
    found = analyze(satune, tmp_path / "out", stories, "--data", data, "--max-length", LENGTH, "--max-span", 0)
    check_against_numpy(found["models"][0], stories, pieces(stories, story, 1))
    assert found["models"][0]["spans"] is None


# Losses


def plan_sources(layers, count):
    return make_models.attention_sources(layers, "before", count)


def oracle_loss(model, documents, sources):
    oracle = Oracle(model, sources=sources)
    batches = []
    for ids in documents:
        tokens = torch.tensor(ids)
        targets = torch.cat([tokens[1:], torch.tensor([-100])])
        batches.append({"tokens": tokens, "targets": targets, "positions": torch.arange(len(ids)),
                        "document_starts": torch.tensor([0, len(ids)])})
    return oracle.loss(batches).item()


def test_losses_of_spans_are_those_of_the_oracle(analysis, random_model):
    spans = analysis["models"][0]["spans"]
    documents = pieces(random_model, TEXT, 3)
    dense = oracle_loss(random_model, documents, list(range(6)))
    assert abs(spans["dense_loss"] - dense) < 1e-4
    assert [plan["layers"] for plan in spans["candidates"]] == [
        str(first) if first == last else f"{first}-{last}" for first in range(1, 6) for last in range(first, 6)]
    for plan in spans["candidates"] + spans["best_by_shared_layers"]:
        expected = oracle_loss(random_model, documents, plan_sources(plan["layers"], 6))
        assert abs(plan["loss"] - expected) < 1e-4, plan["layers"]
        assert abs(plan["loss_increase"] - (expected - dense)) < 1e-4
        assert plan["loss_increase_stderr"] > 0


def test_assigned_heads_are_those_of_a_model_with_permuted_values(analysis, random_model, tmp_path):
    """softmax(A_p(h)) V_h O_h summed over h is head-for-head sharing in a model whose slot p(h) holds V_h and O_h."""
    found = analysis["models"][0]
    pairs = {(pair["anchor"], pair["layer"]): pair["heads"] for pair in found["head_assignments"]}
    documents = pieces(random_model, TEXT, 3)
    config = json.loads((random_model / "config.json").read_text())
    heads, groups, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    permuted = 0
    for plan in found["spans"]["candidates"][:6]:
        sources = plan_sources(plan["layers"], 6)
        tensors = load_file(random_model / "model.safetensors")
        for layer, source in enumerate(sources):
            prefix = f"model.layers.{layer}.self_attn."
            for name in ("k_proj", "v_proj"):
                rows = tensors[f"{prefix}{name}.weight"].view(groups, size, -1).repeat_interleave(heads // groups, 0)
                tensors[f"{prefix}{name}.weight"] = rows.reshape(heads * size, -1).contiguous()
            if source == layer:
                continue
            order = torch.tensor(pairs[source, layer]).argsort()  # slot j holds head order[j]
            permuted += int((order != torch.arange(heads)).any())
            values = tensors[f"{prefix}v_proj.weight"].view(heads, size, -1)[order]
            out = tensors[f"{prefix}o_proj.weight"].view(-1, heads, size)[:, order]
            tensors[f"{prefix}v_proj.weight"] = values.reshape(heads * size, -1).contiguous()
            tensors[f"{prefix}o_proj.weight"] = out.reshape(-1, heads * size).contiguous()
        directory = tmp_path / plan["layers"]
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config | {"num_key_value_heads": heads}))
        save_file(tensors, directory / "model.safetensors")
        assert abs(plan["assigned_heads_loss"] - oracle_loss(directory, documents, sources)) < 1e-4, plan["layers"]
    assert permuted > 0


def test_response_losses_are_those_of_eval(satune, random_model, records, tmp_path):
    rows = json.loads(records.read_text())
    records.write_text(json.dumps([rows[0] | {"output": "long " * 500}, *rows]))
    found = analyze(satune, tmp_path / "out", random_model, "--data", records, "--max-length", 400, "--layers", 2)
    spans = found["models"][0]["spans"]
    assert found["template"] == "alpaca"

    def loss(*options):
        done = call(satune, "eval", random_model, "--task", f"response_loss={records}", "--max-length", 400,
                    "--max-records", 32, "--precision", "fp32", "--json", *options)
        return json.loads(done.stdout)["tasks"]["response_loss"]

    dense = loss()
    assert abs(spans["dense_loss"] - dense["loss"]) < 1e-5
    assert abs(spans["dense_loss_stderr"] - dense["loss_stderr"]) < 1e-5
    assert found["models"][0]["over_length"] == dense["over_length"] == 1
    plan = spans["suggested"]
    assert plan["shared_layers"] == 2
    assert abs(plan["loss"] - loss("--sharing", plan["layers"])["loss"]) < 1e-5


def test_suggestions_and_savings(analysis):
    spans = analysis["models"][0]["spans"]
    best = spans["best_by_shared_layers"]
    assert [plan["shared_layers"] for plan in best] == [1, 2, 3, 4, 5]
    for plan in best:  # no candidate of as many layers does better
        rivals = [other["loss_increase"] for other in spans["candidates"] if other["shared_layers"] == plan["shared_layers"]]
        assert plan["loss_increase"] <= min(rivals) + 1e-12
        # Per shared layer: q [32, 32] and k [16, 32]; K of 2 heads of 8 in fp32; two FLOPs a parameter, and the
        # scores of 4 heads of 8 over half of the mean length, two FLOPs each.
        shared, length = plan["shared_layers"], analysis["models"][0]["tokens"] / 3
        assert plan["saves"]["parameters"] == shared * (32 * 32 + 16 * 32)
        assert plan["saves"]["kv_cache_bytes_per_token"] == shared * 2 * 8 * 4
        assert abs(plan["saves"]["forward_flops_per_token"] - shared * (2 * 48 * 32 + 32 * length)) < 1e-6
    assert spans["suggested"] == best[-1]  # a budget of 1000 % is met by all


def test_a_budget_chooses_the_most_layers_that_keep_to_it(satune, stories, text, tmp_path):
    """On a trained model, where sharing costs something."""

    def spans(name, *options):
        found = analyze(satune, tmp_path / name, stories, "--data", text, "--max-length", LENGTH, "--max-records", 2, *options)
        return found["models"][0]["spans"]

    budget = spans("first", "--loss-budget", "0")
    best = budget["best_by_shared_layers"]
    increases = sorted(plan["loss_increase"] for plan in best)
    assert increases[-1] > 0.05
    assert budget["suggested"] is None or budget["suggested"]["loss_increase"] <= 0
    middle = max(increases[len(increases) // 2], 0.001)
    for name, option, allowed in (("nats", f"{middle:.9f}", middle), ("share", f"{100 * middle / budget['dense_loss']:.9f}%", middle)):
        found = spans(name, "--loss-budget", option)
        assert found["allowed_loss_increase"] == pytest.approx(allowed, abs=1e-6)
        fitting = [plan for plan in best if plan["loss_increase"] <= found["allowed_loss_increase"]]
        assert found["suggested"] == fitting[-1] and len(fitting) < len(best)


# What is analysed


def test_a_model_that_shares_is_analysed_as_it_computes(satune, random_model, text, tmp_path):
    shared = tmp_path / "shared"
    call(satune, "share", random_model, shared, "--sharing", "2-3,5")
    found = analyze(satune, tmp_path / "out", random_model, shared, "--data", text, "--max-length", LENGTH,
                    "--max-records", 2, "--max-span", 1)
    dense, sharing = found["models"]
    similarity = np.array(sharing["similarity"]["layers"])
    for layer, anchor in ((2, 1), (3, 1), (5, 4)):
        assert abs(similarity[layer][anchor] - 1) < 1e-6
    assert similarity[1][0] == pytest.approx(dense["similarity"]["layers"][1][0], abs=1e-6)
    assert sharing["spans"] is None and "2-3,5" in sharing["note"] and sharing["sharing"] == "2-3,5"
    assert (tmp_path / "out" / "model-2-similarity.png").exists()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "shares attention already" in page and "All models" in page


def test_a_model_of_one_layer(satune, text, tmp_path):
    """No pairs and no spans: a page of what there is, and nothing asked for in vain."""
    arch, model = tmp_path / "arch.json", tmp_path / "model"
    arch.write_text(json.dumps({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                                "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}))
    call(satune, "init", arch, model, "--train-tokenizer", text, "--vocab-size", 300)
    options = ("--data", text, "--max-length", LENGTH, "--max-records", 2)
    done = call(satune, "analyze", model, *options, "--output", tmp_path / "out")
    assert "one layer" in done.stdout and "similarity" not in done.stdout
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())["models"][0]
    assert found["spans"] is None and found["head_assignments"] == []
    assert found["similarity"]["layers"] == [[pytest.approx(1)]]
    assert len(found["weighted_cumulative_variance"]["hidden_states"]) == 2
    assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"isotropy", "hidden-states"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "one layer" in page and page.count("<svg") == 2
    refused = call(satune, "analyze", model, *options, "--output", tmp_path / "none", "--layers", 1, code=2).stderr
    assert "--layers" in refused and "at most 0" in refused


def test_every_snapshot_of_a_run(satune, random_model, records, tmp_path):
    run, config = tmp_path / "run", tmp_path / "config.json"
    config.write_text(json.dumps({
        "model_name_or_path": str(random_model), "train_file": str(records), "template": "alpaca_stanford",
        "output_dir": str(run), "max_steps": 4,
        "save_steps": 2, "save_total_limit": 3, "val_size": 0, "eval_steps": 0, "learning_rate": 1e-2, "max_length": 400,
        "warmup_steps": 0, "precision": "fp32", "gradient_accumulation_steps": 1, "num_threads": 1}))
    call(satune, "train", config)
    found = analyze(satune, tmp_path / "out", run, "--data", records, "--max-length", 400, "--max-records", 4,
                    "--max-span", 1)
    # The base model knows of no template of its own: its documents would be other ones.
    refused = call(satune, "analyze", random_model, run, "--data", records, "--output", tmp_path / "refused", "--max-length",
                   400, code=2).stderr
    assert f"{run}: found template alpaca_stanford, not alpaca as {random_model}" in refused and "--template" in refused
    call(satune, "analyze", random_model, run / "export", "--data", records, "--output", tmp_path / "same", "--max-length",
         400, "--max-records", 1, "--max-span", 0, "--template", "alpaca")
    assert [model["step"] for model in found["models"]] == [2, 4]
    assert (tmp_path / "out" / "steps.svg").exists() and (tmp_path / "out" / "steps.png").exists()
    export = analyze(satune, tmp_path / "export", run / "export", "--data", records, "--max-length", 400,
                     "--max-records", 4, "--max-span", 1)["models"][0]
    last = found["models"][1]
    assert np.allclose(last["similarity"]["layers"], export["similarity"]["layers"], atol=1e-6)
    assert last["spans"]["dense_loss"] == pytest.approx(export["spans"]["dense_loss"], abs=1e-6)
    first = analyze(satune, tmp_path / "one", run / "snapshots" / "step-00000002", "--data", records, "--max-length", 400,
                    "--max-records", 4, "--max-span", 0)["models"][0]
    assert first["similarity"] == found["models"][0]["similarity"]
    assert first["similarity"] != last["similarity"]
    with a_browser(tmp_path) as browser:
        check_page(browser.open(f"file://{tmp_path / 'out' / 'index.html'}"), [], figures=8)


# Files


def test_figures_and_page(analysis, folder):
    out = folder / "out"
    names = {"similarity", "head-similarity", "isotropy", "hidden-states", "spans", "shared-layers", "neighbours"}
    # Six layers of four heads; spans of layers 1 to 5; two curves of plans of 1 to 5 layers.
    shown = {"similarity": 36, "head-similarity": 20, "isotropy": 24, "hidden-states": 7, "spans": 15, "shared-layers": 10,
             "neighbours": 5}
    assert {path.stem for path in out.glob("*.svg")} == names == {path.stem for path in out.glob("*.png")}
    for name in names:
        root = xml.etree.ElementTree.parse(out / f"{name}.svg").getroot()
        width, height = int(root.get("width")), int(root.get("height"))
        pixels = png_pixels(out / f"{name}.png")
        assert pixels.shape == (2 * height, 2 * width, 3)
        assert check_pixels(pixels, root) == shown[name], name
        assert root.get("role") == "img" and len(root.get("aria-label")) > 40
        labels = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert len(labels) > 5
    svg = (out / "similarity.svg").read_text()
    for value in analysis["models"][0]["similarity"]["layers"][3]:
        assert f">{value:.2f}<" in svg
    page = (out / "index.html").read_text()
    assert page.count("<svg") == len(names) - 1  # one model: `neighbours` compares several
    assert not re.search(r'(?:src|href)=|url\(|@import|<script|<link|http(?!://www\.w3\.org/2000/svg)', page)
    xml.etree.ElementTree.fromstring(page.split("\n", 1)[1].replace("<meta charset=\"utf-8\">", "").replace(
        '<meta name="viewport" content="width=device-width, initial-scale=1">', ""))
    assert analysis["models"][0]["spans"]["suggested"]["layers"] in page


def test_the_page_in_a_browser(analysis, folder, tmp_path):
    with a_browser(tmp_path) as browser:
        page = browser.open(f"file://{folder / 'out' / 'index.html'}")
        check_page(page, ["What is measured"], figures=6)
        assert page.requested() == [f"file://{folder / 'out' / 'index.html'}"]


def test_every_key_is_defined(analysis):
    told = " ".join(f"{key} {text}" for key, text in analysis["definitions"].items())
    model = analysis["models"][0]
    plan = model["spans"]["candidates"][0] | next(
        (plan for plan in model["spans"]["best_by_shared_layers"] if "predicted_loss_increase" in plan), {})
    keys = [*model["spans"], *plan, *plan["saves"], *model["similarity"], *model["head_assignments"][0],
            *model["weighted_cumulative_variance"], "documents", "tokens", "over_length"]
    for key in keys:
        assert re.search(rf"\b{key.removesuffix('_stderr')}\b", told), key
    assert plan["assigned_heads_loss_gain"] == pytest.approx(plan["loss"] - plan["assigned_heads_loss"], abs=1e-12)


def test_the_table_names_the_suggestion(satune, random_model, text, tmp_path):
    done = call(satune, "analyze", random_model, "--data", text, "--output", tmp_path / "out", "--max-length", LENGTH,
                "--max-records", 2, "--layers", 1)
    starred = [line for line in done.stdout.splitlines() if line.startswith("  * ") and "suggested" not in line]
    plan = json.loads((tmp_path / "out" / "analysis.json").read_text())["models"][0]["spans"]["suggested"]
    assert len(starred) == 1 and starred[0].split()[1] == plan["layers"]
    done = call(satune, "analyze", random_model, "--data", text, "--output", tmp_path / "json", "--max-length", LENGTH,
                "--max-records", 2, "--max-span", 0, "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "json" / "analysis.json").read_text())


# Errors


def test_errors_are_one_line(satune, stories, random_model, text, records, tmp_path):
    full, empty = tmp_path / "full", tmp_path / "empty.txt"
    # Without weights: whatever the config tells shows before they are looked at.
    unloadable = tmp_path / "unloadable"
    shutil.copytree(random_model, unloadable)
    (unloadable / "model.safetensors").write_bytes(b"nothing")
    full.mkdir()
    (full / "file").write_text("")
    empty.write_text("")
    out = tmp_path / "out"
    for arguments, words in (
        ([random_model, "--data", tmp_path / "none.json", "--output", out], ["none.json"]),
        ([random_model, "--data", empty, "--output", out], ["empty.txt"]),
        ([tmp_path / "nobody", "--data", text, "--output", out], ["nobody"]),
        ([random_model, "--data", text, "--output", full], ["full", "empty"]),
        ([random_model, "--data", text, "--output", tmp_path / "no" / "out"], [f"--output {tmp_path}/no/out: found no folder {tmp_path}/no,"]),
        ([random_model, "--data", text, "--output", out, "--max-length", 513], ["--max-length", "513", "512"]),
        ([random_model, "--data", records, "--output", out, "--max-length", 4], ["records.json", "4 tokens"]),
        ([random_model, "--data", text, "--output", out, "--template", "alpaca"], ["--template", "plain text"]),
        ([random_model, "--data", text, "--output", out, "--loss-budget", "much"], ["--loss-budget", "much"]),
        ([random_model, "--data", text, "--output", out, "--loss-budget", "inf"], ["--loss-budget", "inf"]),
        ([random_model, "--data", text, "--output", out, "--layers", 2, "--max-span", 0], ["--max-span 0", "--layers"]),
        ([random_model, "--data", text, "--output", out, "--layers", 6, "--max-length", LENGTH, "--max-records", 1],
         ["--layers", "6", "at most 5"]),
        ([unloadable, "--data", text, "--output", out, "--layers", 6], ["--layers", "6", "at most 5"]),
        ([random_model, stories, "--data", text, "--output", out], ["another tokenizer", str(random_model), str(stories)]),
        ([random_model, "--data", text, "--output", out, "--precision", "fp8"], ["--precision", "fp8"]),
        ([random_model, "--data", text, "--output", out, "--device", "tpu"], ["--device", "tpu"]),
    ):
        done = call(satune, "analyze", *arguments, code=2)
        lines = [line for line in done.stderr.splitlines() if "info" not in line]
        assert len(lines) == 1, lines
        assert all(word in lines[0] for word in words), (words, lines)
        assert not out.exists() and not (tmp_path / "no").exists()


def test_a_signal_leaves_nothing_and_says_so(satune, random_model, text, tmp_path):
    child = subprocess.Popen([satune, "analyze", str(random_model), "--data", str(text), "--output", str(tmp_path / "out"),
                              "--max-length", "8", "--max-records", "100000", "--max-span", "8", "--device", "cpu"],
                             stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert "documents" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    log = child.communicate(timeout=60)[1]
    assert child.returncode == -signal.SIGINT and not list(tmp_path.iterdir())
    assert log.splitlines()[-1] == "satune: stopped by a signal: nothing was written, and the same command begins anew"


def test_a_folder_that_cannot_be_written_is_exit_3(satune, random_model, text):
    done = call(satune, "analyze", random_model, "--data", text, "--output", "/proc/analysis", code=3)
    assert "/proc" in done.stderr and len(done.stderr.splitlines()) == 1
