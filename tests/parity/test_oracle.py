"""The oracle against transformers on plain Llamas: what it says of Shared Attention rests on this."""

import make_models
import oracle
import pytest
import torch
from transformers import AutoModelForCausalLM

LENGTHS = [23, 40, 9]
# transformers 4 does not read v5's rope_parameters in a plain Llama; that its rope_theta is 10000 saves one.
SHAPES = [name for name, shape in make_models.SHAPES.items() if name != "llama3_v5"]


def reference(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def reference_loss(model, batch):
    """Mean over all targets, one document at a time."""
    total, count = 0.0, (batch["targets"] != -100).sum()
    for start, end in zip(batch["document_starts"], batch["document_starts"][1:]):
        logits = model(batch["tokens"][None, start:end]).logits[0]
        total = total + oracle.loss_sum(logits, batch["targets"][start:end])
    return total / count


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_llama_equals_transformers(tmp_path, shape):
    config = make_models.write_model(tmp_path, shape)
    batch = make_models.random_batch(config["vocab_size"], LENGTHS, seed=1)
    model, ours = reference(tmp_path), oracle.Oracle(tmp_path, torch.float32)
    with torch.no_grad():
        start, end = batch["document_starts"][:2]
        logits = model(batch["tokens"][None, start:end]).logits[0]
    assert (ours.logits(batch)[start:end] - logits).abs().max() < 1e-4

    loss = reference_loss(model, batch)
    loss.backward()
    our_loss, gradients = ours.gradients([batch])
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert oracle.relative_l2(gradient, expected[name]) < 2e-5, name


def test_float64_is_float64(tmp_path):
    """fp32 differs from fp64 as fp32 must, and a bump of 1e-12 in a weight is seen in fp64."""
    config = make_models.write_model(tmp_path, "gqa", "3-4")
    batch = make_models.random_batch(config["vocab_size"], LENGTHS, seed=2)
    wide = oracle.Oracle(tmp_path, torch.float64)
    logits = wide.logits(batch)
    error = (oracle.Oracle(tmp_path, torch.float32).logits(batch) - logits).abs().max()
    assert 1e-8 < error < 1e-4
    with torch.no_grad():
        wide.parameters["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1e-12
    assert 0 < (wide.logits(batch) - logits).abs().max() < 1e-9


@pytest.mark.parametrize("layers, anchor", [("", "before"), ("3-4", "before"), ("1-2,4-5", "first")])
def test_packing_equals_one_document_at_a_time(tmp_path, layers, anchor):
    config = make_models.write_model(tmp_path, "gqa", layers, anchor)
    batch = make_models.random_batch(config["vocab_size"], [5, 17, 1, 30], seed=3)
    ours = oracle.Oracle(tmp_path)
    assert (ours.logits(batch) - ours.logits(batch, block_diagonal=True)).abs().max() < 1e-12


def test_sharing_stores_the_anchors_probabilities(tmp_path):
    """Sharing changes the result, depends on the rule, and leaves the shared layers' q and k without effect."""
    config = make_models.write_model(tmp_path, "gqa")
    batch = make_models.random_batch(config["vocab_size"], [30], seed=4)
    plan = {rule: make_models.attention_sources("2-4", rule, 6) for rule in ("before", "first")}
    assert plan == {"before": [0, 1, 1, 1, 1, 5], "first": [0, 1, 2, 2, 2, 5]}
    results = [oracle.Oracle(tmp_path, sources=sources).logits(batch) for sources in (None, *plan.values())]
    for i in range(3):
        assert (results[i] - results[i - 1]).abs().max() > 0.1
    names = oracle.Oracle(tmp_path, sources=plan["first"]).parameters
    assert "model.layers.2.self_attn.q_proj.weight" in names
    assert "model.layers.3.self_attn.q_proj.weight" not in names


def test_gradients_agree_with_finite_differences(tmp_path):
    config = make_models.write_model(tmp_path, "tied", "1-2,4-5", "first")
    batches = [make_models.random_batch(config["vocab_size"], [11, 8], seed=seed) for seed in (5, 6)]
    ours = oracle.Oracle(tmp_path)
    _, gradients = ours.gradients(batches)
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight", "model.norm.weight"):
        direction = make_models.random_tensor(name, list(gradients[name].shape), seed=7).double()
        values = []
        with torch.no_grad():
            for sign in (1, -2):  # +h, then from there to -h
                ours.parameters[name] += sign * 1e-6 * direction
                values.append(ours.loss(batches).item())
            ours.parameters[name] += 1e-6 * direction
        numeric = (values[0] - values[1]) / 2e-6
        assert numeric == pytest.approx((gradients[name] * direction).sum().item(), rel=1e-6), name
