"""`satune diff` as a user runs it: against a dump of transformers, and against another run of satune."""

import shutil

import dump_reference
import make_models
import pytest
import sentencepiece
import torch
from programs import call, refused
from safetensors.torch import load_file, save_file

STORIES_IDS = "1,403,407,261,378,410,33,12"
IDS = "1,9,33,7,50,50,12,3,4"


@pytest.fixture(scope="module")
def reference(tmp_path_factory, stories):
    """The dump of the real model, with gradients: tensors, not to be changed."""
    path = tmp_path_factory.mktemp("dump") / "dump.safetensors"
    dump_reference.main([str(stories), "--tokens", STORIES_IDS, "--gradients", "--output", str(path)])
    return load_file(path)


@pytest.fixture
def dump(tmp_path, reference):
    """Saves a changed copy of the reference and returns its path."""
    def save(change=lambda tensors: None):
        tensors = {name: tensor.clone() for name, tensor in reference.items()}
        change(tensors)
        save_file(tensors, tmp_path / "dump.safetensors")
        return tmp_path / "dump.safetensors"
    return save


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Makes tiny models once: models("gqa", "3-4", "first") -> directory."""
    root = tmp_path_factory.mktemp("models")

    def make(shape, layers="", anchor="before"):
        directory = root / f"{shape}_{layers}_{anchor}"
        if not directory.exists():
            make_models.write_model(directory, shape, layers, anchor=anchor)
        return directory
    return make


def changed(model, directory, name, value=0.5):
    """A copy of the model with one element of one weight moved."""
    shutil.copytree(model, directory)
    weights = load_file(directory / "model.safetensors")
    weights[name][0, 0] += value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_diff_agrees_with_transformers(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump()).stdout
    for name in ("embed", "layers.0.q", "layers.4.attention", "final_norm", "logits", "loss"):
        assert f"\n{name} " in done
    last = done.splitlines()[-1]
    # q, k, v, attention and out of 5 layers; 9 weights of each, the final norm and the tied embedding.
    assert last.startswith(f"{3 + 5 * 5} tensors agree")
    assert f"{1 + 5 * 9 + 2} tensors of the backward pass agree" in last


def test_gradients_stand_in_backward_order(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump()).stdout
    gradients = [line.split()[0] for line in done.splitlines() if line.startswith("gradient.")]
    assert gradients[0] == "gradient.model.norm.weight"
    assert gradients[-1] == "gradient.model.embed_tokens.weight"
    layer = [name.removeprefix("gradient.model.layers.4.") for name in gradients[1:10]]
    assert layer == ["mlp.down_proj.weight", "mlp.up_proj.weight", "mlp.gate_proj.weight",
                     "post_attention_layernorm.weight", "self_attn.o_proj.weight", "self_attn.v_proj.weight",
                     "self_attn.k_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight"]


def test_diff_names_the_first_element_that_parts(satune, stories, dump):
    def change(tensors):
        tensors["layers.2.v"][3, 1, 5] += 0.5
        tensors["logits"][0, 0] += 1

    path = dump(change)
    done = call(satune, "diff", stories, "--reference", path, code=1).stdout
    assert "first to part: layers.2.v[3, 1, 5]" in done.splitlines()[-1]
    assert "1 of 256 elements" in done.splitlines()[-1]
    assert "48 tensors of the backward pass agree" in done
    call(satune, "diff", stories, "--reference", path, "--atol", 2)


def test_diff_names_the_gradient_that_parts(satune, stories, dump):
    def change(tensors):
        for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.3.mlp.up_proj.weight"):
            gradient = tensors["gradient." + name]
            gradient[2, 7] += 0.01 * gradient.norm()

    path = dump(change)
    done = call(satune, "diff", stories, "--reference", path, "--gradients", code=1).stdout
    assert "28 tensors agree" in done
    assert "first of the backward pass to part: gradient.model.layers.3.mlp.up_proj.weight[2, 7]: satune " in done
    assert "first to part: " not in done
    assert [line.split()[0] for line in done.splitlines() if line.endswith("  parts")] == [
        "gradient.model.layers.3.mlp.up_proj.weight", "gradient.model.layers.1.self_attn.k_proj.weight"]
    call(satune, "diff", stories, "--reference", path, "--tolerance", 0.02)


@pytest.mark.parametrize("anchor", ["before", "first"])
def test_gradients_of_shared_models_agree_with_transformers(satune, models, tmp_path, anchor):
    model, path = models("gqa", "2-3,5-5" if anchor == "before" else "2-4", anchor), tmp_path / "dump.safetensors"
    dump_reference.main([str(model), "--tokens", IDS, "--gradients", "--output", str(path)])
    last = call(satune, "diff", model, "--reference", path).stdout.splitlines()[-1]
    weights = load_file(model / "model.safetensors")
    assert f"{len(weights) + 1} tensors of the backward pass agree" in last
    assert "not compared" not in last


def test_diff_finds_where_sharing_begins(satune, stories, dump):
    done = call(satune, "diff", stories, "--reference", dump(), "--sharing", "3-4", code=1).stdout
    assert "first to part: layers.3.attention[" in done.splitlines()[-1]
    assert "only reference has: " in done and "layers.3.q" in done


def test_diff_refuses_what_is_no_dump_of_this_model(satune, stories, reference, tmp_path):
    def write(**tensors):
        save_file(tensors, tmp_path / "dump.safetensors")
        return tmp_path / "dump.safetensors"

    def error(*options, **tensors):
        return refused(satune, "diff", stories, "--reference", write(**tensors), *options)

    tokens, logits = reference["tokens"], reference["logits"]
    assert "tensor logits" in error(tokens=tokens, logits=logits[:, :5].contiguous())
    assert "512" in error(tokens=torch.tensor([1, 512]))
    assert "tensor tokens" in error(logits=logits)
    assert "found no gradients" in error("--gradients", tokens=tokens, logits=logits)
    assert "2 tokens" in error(tokens=tokens[:2], loss=torch.tensor(1.0))
    assert "--tolerance" in error("--tolerance", 0.1, tokens=tokens, logits=logits), "nothing that it judges"
    assert "--data" in error("--max-records", 2, tokens=tokens, logits=logits)
    assert "--data" in error("--template", "alpaca", tokens=tokens, logits=logits)
    refused(satune, "diff", stories, "--reference", "")
    for name in ("--rtol", "--atol"):
        line = error(name, 0.1, tokens=tokens, loss=torch.tensor(1.0))
        assert f"{name}: found no tensor of the forward pass" in line, line


def test_two_models_part_where_a_weight_differs(satune, models, tmp_path):
    model = models("gqa")
    other = changed(model, tmp_path / "other", "model.layers.2.self_attn.v_proj.weight")
    done = call(satune, "diff", model, "--with", other, "--tokens", IDS, "--gradients", code=1).stdout
    assert done.splitlines()[0].startswith(f"this    {model}, no sharing, fp32 on ")
    assert done.splitlines()[1].startswith(f"other   {other}, no sharing, fp32 on ")
    assert "first to part: layers.2.v[" in done.splitlines()[-1]
    assert "first of the backward pass to part: " in done
    before = done[:done.index("layers.2.v ")]
    assert "parts" not in before and "layers.2.k " in before
    same = call(satune, "diff", model, "--with", model, "--tokens", IDS, "--gradients", "--tolerance", 0).stdout
    assert "tensors agree" in same and "of the backward pass agree" in same, "bitwise the same"


def test_bf16_is_within_its_tolerance(satune, stories, records):
    options = ("diff", stories, "--with-precision", "bf16", "--data", records, "--gradients")
    done = call(satune, *options).stdout
    assert "fp32 on cpu" in done and "bf16 on cpu" in done and "in 4 documents" in done
    assert "relative L2 at most 0.05" in done and "relative L2 at most 0.15" in done
    call(satune, *options, "--tolerance", 1e-4, code=1)


def test_a_dump_in_bf16_is_judged_by_whole_tensors(satune, stories, dump):
    options = ("diff", stories, "--reference", dump(), "--precision", "bf16")
    done = call(satune, *options).stdout
    assert "relative L2 at most 0.05" in done and "relative L2 at most 0.15" in done
    assert "rtol 0.0001" in call(satune, *options, "--rtol", 1e-4, code=1).stdout
    call(satune, *options, "--tolerance", 1e-4, code=1)
    fewer = dump(lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("gradient") or name == "loss"])
    call(satune, "diff", stories, "--reference", fewer, "--precision", "bf16", "--tolerance", 0.05)


@pytest.mark.parametrize("anchor", ["before", "first"])
def test_dense_against_shared(satune, stories, anchor):
    """What is left out is named, and what parts first is the shared layers' attention."""
    done = call(satune, "diff", stories, "--with-sharing", "2-3", "--with-anchor", anchor, "--prompt",
                "Once upon a time", "--gradients", code=1).stdout
    shared = [2, 3] if anchor == "before" else [3]
    only = [line for line in done.splitlines() if line.startswith("not compared, only this has: ")]
    expected = [f"layers.{layer}.{name}" for layer in shared for name in "qk"]
    expected += [f"gradient.model.layers.{layer}.self_attn.{name}_proj.weight"
                 for layer in reversed(shared) for name in "kq"]
    assert only == ["not compared, only this has: " + ", ".join(expected)]
    assert f"first to part: layers.{shared[0]}.attention[" in done.splitlines()[-1]
    assert "2-3" in done.splitlines()[1] and anchor in done.splitlines()[1]


def test_diff_of_an_empty_prompt(satune, stories, stories_without_bos):
    """BOS alone, or nothing to compute on."""
    options = ("--with-precision", "bf16", "--prompt", "")
    assert "tokens  1 in 1 document, 0 targets" in call(satune, "diff", stories, *options).stdout
    line = refused(satune, "diff", stories_without_bos, *options)
    assert "--prompt: found no token: the tokenizer has no BOS, expected some text" in line


def test_diff_of_two_runs_refuses(satune, stories, tmp_path):
    def error(*options, code=2):
        return refused(satune, "diff", stories, *options, code=code)

    assert "nothing to compare with" in error("--prompt", "Once")
    assert "nothing to compute on" in error("--with-precision", "bf16")
    assert "one of --prompt, --tokens and --data" in error("--with-precision", "bf16", "--prompt", "a", "--tokens", "1")
    assert "--tolerance" in error("--with-precision", "bf16", "--prompt", "a", "--rtol", 1)
    assert "--data" in error("--with-precision", "bf16", "--prompt", "a", "--template", "alpaca")
    assert "--data" in error("--with-precision", "bf16", "--tokens", "1", "--max-records", 2)
    assert '"1,x"' in error("--with-precision", "bf16", "--tokens", "1,x")
    assert "id 512" in error("--with-precision", "bf16", "--tokens", "1,512")
    assert "--tolerance: found nan, expected a number of 0 or more" in error("--with", stories, "--tokens", "1,2", "--tolerance", "nan")
    assert "the other side (--with...)" in error("--with-sharing", "2-3-4", "--tokens", "1,2")
    other = shutil.copytree(stories, tmp_path / "other")
    with open(other / "tokenizer.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([make_models.STORY]), model_writer=model, vocab_size=80,
                                                 hard_vocab_limit=False, minloglevel=2)
    line = error("--with", other, "--prompt", "Once")
    assert "other: found another tokenizer" in line and "--tokens" in line
    call(satune, "diff", stories, "--with", other, "--tokens", "1,2,3")
    assert '"fp8"' in error("--with-precision", "fp8", "--tokens", "1")
    if not torch.cuda.is_available():
        assert "found 0 CUDA cards" in error("--with-device", "cuda", "--tokens", "1", code=3)
