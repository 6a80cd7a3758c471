"""Exported directories in transformers: the Python code they carry, and what the satune program writes.

Runs under whichever transformers is imported; test_transformers_4_57.py runs it again under the other one.
"""

import copy
import json
import subprocess
import sys

import make_models
import oracle
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

PLANS = [("3-4", "before"), ("1-2,4-5", "first"), ("1-2,4", "before")]
SHAPES = ["gqa", "tied", "head_dim", "llama3_v4", "llama3_v5"]
REMOTE = {"trust_remote_code": True, "local_files_only": True}


def load(directory, **options):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **REMOTE, **options).eval()


def run(*command, **options):
    """Runs a command of ours; its output is the message of a failure."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def exports():
    """What `export` has made, by what it was asked for: tests read the same directories."""
    return {}


@pytest.fixture(params=["python", "satune"])
def export(request, exports, tmp_path_factory):
    """export(shape, layers, anchor) -> (directory, expected directory): an exported Shared-Attention model as
    make_models writes it, or as `satune share` makes it of the same dense weights."""
    program = request.getfixturevalue("satune") if request.param == "satune" else None

    def make(shape="gqa", layers="3-4", anchor="before"):
        key = (request.param, shape, layers, anchor)
        if key not in exports:
            folder = tmp_path_factory.mktemp("export")
            out = expected = folder / "expected"
            make_models.write_model(expected, shape, layers, anchor)
            if program is not None:
                out = folder / "out"
                make_models.write_model(folder / "dense", shape)
                run(program, "share", folder / "dense", out, "--sharing", layers, "--anchor", anchor)
            exports[key] = out, expected
        return exports[key]

    return make


def tokens_of(seed=1, rows=2, length=19, vocab=60):
    return torch.randint(3, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def one_document(tokens):
    batch = {"tokens": tokens, "positions": torch.arange(len(tokens))}
    targets = torch.cat([tokens[1:], torch.tensor([-100])])
    return batch | {"targets": targets, "document_starts": torch.tensor([0, len(tokens)])}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers, anchor", PLANS)
def test_logits_loss_and_gradients_equal_the_oracle(export, shape, layers, anchor):
    directory, expected = export(shape, layers, anchor)
    batch = one_document(tokens_of(length=40)[0])
    ours = oracle.Oracle(expected, torch.float32)
    model = load(directory)
    output = model(batch["tokens"][None], labels=batch["tokens"][None])
    assert (output.logits[0] - ours.logits(batch)).abs().max() < 1e-4
    output.loss.backward()
    loss, gradients = ours.gradients([batch])
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == gradients.keys()
    for name, gradient in found.items():
        assert oracle.relative_l2(gradient, gradients[name]) < 2e-5, name


@pytest.mark.parametrize("export", ["satune"], indirect=True)
def test_satune_writes_the_same_tensors_and_plan(export):
    directory, expected = export("llama3_v4", "1-2,4-5", "first")
    found, wanted = load_file(directory / "model.safetensors"), load_file(expected / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]), name
    found, wanted = (json.loads((path / "config.json").read_text()) for path in (directory, expected))
    for key in ("model_type", "auto_map", "architectures", "sharing", "attention_sources", "rope_theta"):
        assert found[key] == wanted[key], key
    for key in ("rope_parameters", "rope_scaling", "torch_dtype", "dtype"):
        assert key in found, key


@pytest.mark.parametrize("anchor, layers", [("before", "3-4"), ("first", "1-2,4-5")])
def test_greedy_ids_with_and_without_cache(export, layers, anchor):
    model = load(export("gqa", layers, anchor)[0])
    prompt = tokens_of()
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    step_by_step = prompt
    for _ in range(24):
        step_by_step = torch.cat([step_by_step, model(step_by_step).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, step_by_step)
    assert len(cached[0, prompt.shape[1] :].unique()) > 3  # not one token repeated, which any cache would give


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "top_k": 10},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=["beams", "sampling", "beam_sampling", "several"],
)
def test_beams_and_sampling_use_the_cache_rightly(export, options):
    model = load(export()[0])
    options = {"max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0, "do_sample": False} | options
    results = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        results.append(model.generate(tokens_of(), use_cache=use_cache, **options))
    assert torch.equal(*results)


def test_shared_layers_cache_values_only(export):
    directory, _ = export("gqa", "1-2,4", "before")
    model = load(directory)
    rows, length, kv_size, layers, shared = 2, 19, 2 * 8, 6, 3
    for cache in (None, DynamicCache(), DynamicCache(config=model.config)):
        cache = model(tokens_of(rows=rows, length=length), past_key_values=cache, use_cache=True).past_key_values
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert stored == rows * length * 4 * kv_size * (2 * layers - shared)
        assert [layer.keys.nbytes > 0 for layer in cache.layers] == [True, False, False, True, False, True]
        assert [layer.get_seq_length() for layer in cache.layers] == [length] * layers
        assert cache.get_seq_length() == length


@torch.no_grad()
def test_cache_in_pieces_cropped_copied_and_static(export):
    model = load(export()[0])
    tokens = tokens_of(length=24)
    whole = model(tokens).logits
    cache = DynamicCache(config=model.config)
    for piece in tokens[:, :18].split([7, 1, 10], dim=1):
        logits = model(piece, past_key_values=cache).logits
    assert (logits - whole[:, 8:18]).abs().max() < 1e-4
    branch = copy.deepcopy(cache)
    model(tokens[:, :3], past_key_values=branch)  # goes elsewhere, then back
    branch.crop(-3)
    for continued in (cache, branch):
        logits = model(tokens[:, 18:], past_key_values=continued).logits
        assert (logits - whole[:, 18:]).abs().max() < 1e-4
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    static = model.generate(tokens, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, model.generate(tokens, **options))


def test_left_padding_changes_nothing(export):
    model = load(export()[0])
    short, long = tokens_of(seed=2, rows=1, length=6), tokens_of(seed=3, rows=1, length=11)
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = [model.generate(prompt, **options)[0, prompt.shape[1] :] for prompt in (short, long)]
    padded = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1), long])
    mask = torch.ones_like(padded)
    mask[0, :5] = 0
    together = model.generate(padded, attention_mask=mask, **options)[:, 11:]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("anchor", ["before", "first"])
def test_checkpointing_gives_equal_gradients(export, anchor):
    directory, _ = export("tied", "2-4", anchor)
    tokens = tokens_of(length=30)

    def gradients(**checkpointing):
        model = load(directory).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model(tokens, labels=tokens).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients()
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in expected.values())
    for use_reentrant in (True, False):
        found = gradients(use_reentrant=use_reentrant)
        for name, gradient in expected.items():
            # Not to the bit: reentrant checkpointing runs a backward a layer, and what several layers hand to one
            # tensor (a tied embedding, an anchor's Q and K) is then summed in another order.
            difference = (found[name] - gradient).norm() / gradient.norm()
            assert difference < 1e-6, f"use_reentrant={use_reentrant} {name}: {difference}"


def test_an_attention_implementation_can_be_set(export, monkeypatch):
    """transformers reads the source of the class, and keeps what it finds where derived classes find it too."""
    model = load(export("tied", "2-4", "before")[0])
    kept = "_can_set_attn_implementation_cached_value"
    for ancestor in type(model).__mro__:
        if kept in vars(ancestor):
            monkeypatch.delattr(ancestor, kept)
    tokens = tokens_of(length=30)
    logits = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        logits[implementation] = model(tokens).logits
    assert (logits["eager"] - logits["sdpa"]).abs().max() < 1e-4


WITHOUT_TRUST = """
import sys, transformers
for auto in (transformers.AutoConfig, transformers.AutoModel, transformers.AutoModelForCausalLM):
    for trust in ({"trust_remote_code": False}, {}):
        try:
            auto.from_pretrained(sys.argv[1], **trust)
        except ValueError as error:
            answer = "trust_remote_code" in str(error)
        else:
            answer = "loads"
        print("\\nanswer:", auto.__name__, answer)  # the question stands on a line that has no end
"""


@pytest.mark.parametrize("export", ["satune"], indirect=True)
def test_without_trust_it_fails(export):
    """In a process of its own, without a terminal that could answer yes, and without what others imported."""
    directory, _ = export()
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRUST, directory], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer:")]
    expected = [f"answer: {auto} True" for auto in ("AutoConfig", "AutoModel", "AutoModelForCausalLM") for _ in range(2)]
    assert answers == expected, done.stdout + done.stderr


def test_save_and_reload(export, tmp_path):
    directory, _ = export("llama3_v4", "1-2,4-5", "first")
    model = load(directory)
    model.save_pretrained(tmp_path / "saved", safe_serialization=True)
    assert {"modeling_sa_llama.py", "configuration_sa_llama.py"} <= {p.name for p in (tmp_path / "saved").iterdir()}
    again = load(tmp_path / "saved")
    assert torch.equal(again(tokens_of()).logits, model(tokens_of()).logits)
    names = load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert names == load_file(directory / "model.safetensors").keys()
    ours = oracle.Oracle(tmp_path / "saved", torch.float32)
    batch = one_document(tokens_of()[0])
    assert (again(batch["tokens"][None]).logits[0] - ours.logits(batch)).abs().max() < 1e-4


def test_missing_or_surplus_weights_do_not_pass_silently(tmp_path):
    """Every weight of the model comes from the file, and every weight of the file goes into the model."""
    make_models.write_model(tmp_path, "gqa", "3-4")
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **REMOTE)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_base_model_hidden_states_and_attentions(tmp_path):
    make_models.write_model(tmp_path, "gqa", "3-4")
    base = AutoModel.from_pretrained(tmp_path, attn_implementation="eager", **REMOTE).eval()
    assert type(base).__name__ == "SALlamaModel"
    output = base(tokens_of(), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 7 and len(output.attentions) == 6
    sources = AutoConfig.from_pretrained(tmp_path, **REMOTE).attention_sources
    for layer, source in enumerate(sources):
        assert torch.equal(output.attentions[layer], output.attentions[source])
        assert layer == 0 or layer != source or not torch.equal(output.attentions[layer], output.attentions[layer - 1])
    sdpa = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa", **REMOTE).eval()
    assert (sdpa(tokens_of()).last_hidden_state - output.last_hidden_state).abs().max() < 1e-4


def test_what_vllm_asks_for(tmp_path):
    """vLLM's transformers backend registers its own attention function, hands it kwargs through the model,
    replaces linear layers by the tensor-parallel plan and calls with a flat row of tokens."""
    make_models.write_model(tmp_path, "gqa", "3-4")
    seen = []

    def attention(module, query, key, value, attention_mask, instances=None, **kwargs):
        seen.append((module.layer_idx, instances))
        return transformers.AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)

    transformers.AttentionInterface.register("like_vllm", attention)
    config = AutoConfig.from_pretrained(tmp_path, **REMOTE)
    model = AutoModel.from_pretrained(tmp_path, attn_implementation="like_vllm", **REMOTE).eval()
    assert model._supports_attention_backend
    position_ids = torch.arange(12)[None]
    row = model(tokens_of(length=12)[:1], position_ids=position_ids, use_cache=False, return_dict=False, instances="x")
    assert seen == [(layer, "x") for layer in range(6)]
    plain = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa", **REMOTE).eval()
    assert torch.equal(row[0], plain(tokens_of(length=12)[:1]).last_hidden_state)
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    planned = {pattern.replace("*", str(i)) for pattern in config.base_model_tp_plan for i in range(6)}
    assert linears <= planned


def test_wrong_plans_are_refused(tmp_path):
    make_models.write_model(tmp_path, "gqa", "3-4")
    config = json.loads((tmp_path / "config.json").read_text())
    for sources in ([0, 1, 2, 2, 2], [0, 1, 2, 2, 3, 5], [0, 1, 2, 5, 5, 5], [0, 1, 2, -1, 2, 5]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"attention_sources": sources}))
        with pytest.raises(ValueError, match="attention_sources"):
            load(tmp_path)


def test_vanilla_tensors_come_back_byte_for_byte(satune, tmp_path):
    for shape, dtype in (("tied", torch.float32), ("default_v5", torch.bfloat16), ("gqa", torch.float16)):
        source, out = tmp_path / shape, tmp_path / f"{shape}_out"
        make_models.write_model(source, shape, dtype=dtype)
        run(satune, "share", source, out)
        found, wanted = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == dtype and found[name].shape == tensor.shape, name
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
        assert not list(out.glob("*.py"))
        assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
        model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", local_files_only=True)
        assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == dtype


def test_satune_generates_the_same_ids(satune, realdata, tmp_path):
    """stories260K with layers 3-4 shared: satune's greedy ids are those of transformers' generate()."""
    run(satune, "share", realdata / "stories260K_hf", tmp_path / "out", "--sharing", "3-4")
    options = ("--prompt", "Once upon a time", "--max-new-tokens", 40, "--temperature", 0, "--json")
    found = json.loads(run(satune, "generate", tmp_path / "out", *options))
    model = load(tmp_path / "out")
    prompt = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out", **REMOTE).encode("Once upon a time")])
    assert prompt.tolist() == [[1, 403, 407, 261, 378]]
    generated = model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)[0, 5:]
    assert found["tokens"] == generated.tolist()
    cache = model(prompt, use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert found["kv_cache_bytes_per_token"] * prompt.shape[1] == stored


def test_generation_config_with_our_template_name(tmp_path, caplog):
    """The name of the trained template travels in generation_config.json; transformers takes no offence."""
    make_models.write_model(tmp_path, "gqa", "3-4")
    trained = {"do_sample": False, "bos_token_id": 1, "eos_token_id": [2, 9], "satune_template": "alpaca"}
    (tmp_path / "generation_config.json").write_text(json.dumps(trained))
    with caplog.at_level("WARNING", logger="transformers"):
        model = load(tmp_path)
        length = model.generate(tokens_of(rows=1), max_new_tokens=4, pad_token_id=0).shape[1]
    assert model.generation_config.eos_token_id == [2, 9] and length > 19
    assert not [record.message for record in caplog.records if "satune_template" in record.message]
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["satune_template"] == "alpaca"
