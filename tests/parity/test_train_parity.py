"""satune's forward, backward, AdamW and training loop against transformers and the eager oracle.

The C++ side is `parity_tool`, built beside satune:
    parity_tool grads MODEL BATCH.safetensors OUT.safetensors --precision fp32|fp64 [--sharing L --anchor R]
                [--recording keep|selective|recompute]
        BATCH: tokens, targets, positions, document_starts (int64). OUT: logits, loss (mean over targets),
        grad.<tensor name>.
    parity_tool adamw MODEL GRADS.safetensors OUT.safetensors --lr F --weight-decay F
        GRADS: <step>.<tensor name> for steps 0, 1, ...; OUT: <tensor name> after all updates.
    parity_tool trajectory MODEL BATCHES.safetensors OUT.safetensors --lr F --weight-decay F --max-grad-norm F
                --steps N
        BATCHES: tokens.0, targets.0, positions.0, document_starts.0, tokens.1, ...; OUT: losses [N] fp64,
        grad_norms [N] fp64 before clipping, <tensor name> at the end.
"""

import subprocess

import make_models
import oracle
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PLANS = [("3-4", "before"), ("3-4", "first"), ("1-2,4-5", "before"), ("1-2,4-5", "first"), ("1-5", "before")]
PACKED, SINGLE = [23, 1, 40, 9], [57]
LEARNING_RATE, DECAY, MAX_NORM, STEPS = 1e-3, 0.1, 1.0, 20


def call(tool, *arguments):
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"


class Grads:
    """One call of `parity_tool grads`."""

    def __init__(self, tool, directory, batch, precision="fp32", **options):
        save_file(batch, directory / "batch.safetensors")
        extra = [word for key, value in options.items() for word in (f"--{key}", value)]
        out = directory / "grads.safetensors"
        call(tool, "grads", directory, directory / "batch.safetensors", out, "--precision", precision, *extra)
        tensors = load_file(out)
        self.logits, self.loss = tensors["logits"], tensors["loss"].double().item()
        self.gradients = {name.removeprefix("grad."): t for name, t in tensors.items() if name.startswith("grad.")}


def assert_same_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    errors = {name: oracle.relative_l2(found[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.get)
    assert errors[worst] < tolerance, f"{worst}: relative L2 {errors[worst]:.3e}, expected below {tolerance}"


def transformers_gradients(directory, batch):
    """Per-document logits, mean loss over all targets and gradients by transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    starts, targets = batch["document_starts"], batch["targets"]
    logits = torch.cat([model(batch["tokens"][None, a:b]).logits[0] for a, b in zip(starts, starts[1:])])
    loss = oracle.loss_sum(logits, targets) / (targets != -100).sum()
    loss.backward()
    return logits.detach(), loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("lengths", [PACKED, SINGLE], ids=["packed", "single"])
@pytest.mark.parametrize("shape", make_models.SHAPES)
def test_plain_llama_equals_transformers(parity_tool, tmp_path, shape, lengths):
    config = make_models.write_model(tmp_path, shape)
    batch = make_models.random_batch(config["vocab_size"], lengths, seed=11)
    ours = Grads(parity_tool, tmp_path, batch)
    logits, loss, gradients = transformers_gradients(tmp_path, batch)
    assert (ours.logits - logits).abs().max() < 1e-4
    assert ours.loss == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(ours.gradients, gradients, 2e-5)


MODELS = ([("gqa", *plan) for plan in PLANS] + [(shape, *PLANS[3]) for shape in ("tied", "head_dim", "llama3_v5")]
          + [("tied", "", "before"), ("llama3_v4", "2-4", "before")])
# Each model in both precisions and with both kinds of batch, in turn: every pair of the three, not every combination.
CASES = [(*model, kind, precision) for number, model in enumerate(MODELS)
         for kind, precision in zip(("packed", "single"), ("fp32", "fp64") if number % 2 == 0 else ("fp64", "fp32"))]


@pytest.mark.parametrize("shape, layers, anchor, kind, precision", CASES)
def test_equals_the_oracle(parity_tool, tmp_path, shape, layers, anchor, kind, precision):
    config = make_models.write_model(tmp_path, shape, layers, anchor)
    batch = make_models.random_batch(config["vocab_size"], PACKED if kind == "packed" else SINGLE, seed=12)
    ours = Grads(parity_tool, tmp_path, batch, precision)
    reference = oracle.Oracle(tmp_path, torch.float64 if precision == "fp64" else torch.float32)
    loss, gradients = reference.gradients([batch])
    tolerance = {"fp32": (1e-4, 1e-6, 2e-5), "fp64": (1e-10, 1e-10, 1e-10)}[precision]
    assert (ours.logits - reference.logits(batch)).abs().max() < tolerance[0]
    assert ours.loss == pytest.approx(loss.item(), rel=tolerance[1])
    assert_same_gradients(ours.gradients, gradients, tolerance[2])


def test_the_fp64_tolerance_sees_a_wrong_anchor_gradient(parity_tool, tmp_path):
    """A span's share missing in the anchor's q_proj gradient would be far outside the tolerance."""
    config = make_models.write_model(tmp_path, "gqa", "3-4")
    batch = make_models.random_batch(config["vocab_size"], PACKED, seed=12)
    ours = Grads(parity_tool, tmp_path, batch, "fp64")
    dense = oracle.Oracle(tmp_path, sources=[0, 1, 2, 2, 2, 5])
    original, name = dense.attend, "model.layers.2.self_attn.q_proj.weight"
    dense.attend = lambda layer, x, p: original(layer, x, p.detach() if layer == 4 else p)
    _, gradients = dense.gradients([batch])
    assert oracle.relative_l2(ours.gradients[name], gradients[name]) > 1e-3


@pytest.mark.parametrize("layers, anchor", [("", "before"), ("2-4", "before"), ("1-2,4-5", "first")])
def test_recording_changes_no_bit(parity_tool, tmp_path, layers, anchor):
    config = make_models.write_model(tmp_path, "tied", layers, anchor)
    batch = make_models.random_batch(config["vocab_size"], PACKED, seed=13)
    runs = [Grads(parity_tool, tmp_path, batch, recording=kind) for kind in ("keep", "selective", "recompute")]
    for other in runs[1:]:
        assert other.loss == runs[0].loss
        for name, gradient in runs[0].gradients.items():
            assert torch.equal(other.gradients[name], gradient), name


@pytest.mark.parametrize("layers, anchor", PLANS)
def test_sharing_a_dense_checkpoint_is_the_same_model(parity_tool, tmp_path, layers, anchor):
    """--sharing on the dense directory, and the directory of the shared model: the same bits."""
    config = make_models.write_model(tmp_path / "dense", "gqa")
    make_models.write_model(tmp_path / "shared", "gqa", layers, anchor)
    batch = make_models.random_batch(config["vocab_size"], PACKED, seed=14)
    direct = Grads(parity_tool, tmp_path / "dense", batch, sharing=layers, anchor=anchor)
    exported = Grads(parity_tool, tmp_path / "shared", batch)
    assert torch.equal(direct.logits, exported.logits) and direct.loss == exported.loss
    assert direct.gradients.keys() == exported.gradients.keys()
    for name, gradient in exported.gradients.items():
        assert torch.equal(direct.gradients[name], gradient), name


def test_a_batch_without_targets_gives_zero(parity_tool, tmp_path):
    config = make_models.write_model(tmp_path, "gqa", "3-4")
    batch = make_models.random_batch(config["vocab_size"], PACKED, seed=15)
    batch["targets"] = torch.full_like(batch["targets"], -100)
    ours = Grads(parity_tool, tmp_path, batch)
    assert ours.loss == 0
    assert ours.gradients and all((gradient == 0).all() for gradient in ours.gradients.values())


def adamw_errors(parameters, updated):
    return max(oracle.relative_l2(updated[name], parameter.detach()) for name, parameter in parameters.items())


def updated_in_torch(directory, gradients, lr, decay_norms=False):
    model = oracle.Oracle(directory, torch.float32)
    optimizer = oracle.adamw(model.parameters, lr, DECAY, decay_norms)
    for step in gradients:
        for name, parameter in model.parameters.items():
            parameter.grad = step[name].clone()
        optimizer.step()
    return model.parameters


@pytest.mark.parametrize("updates", [1, 3])
def test_adamw_updates_from_given_gradients(parity_tool, tmp_path, updates):
    """Within 1e-6 per tensor; decay on norms or a learning rate 0.1 % off is beyond it."""
    make_models.write_model(tmp_path, "tied", "3-4")
    shapes = {name: list(p.shape) for name, p in oracle.Oracle(tmp_path, torch.float32).parameters.items()}
    gradients = [
        {name: 1e-2 * make_models.random_tensor(name, shape, seed=20 + step) for name, shape in shapes.items()}
        for step in range(updates)
    ]
    stacked = {f"{step}.{name}": t for step, given in enumerate(gradients) for name, t in given.items()}
    save_file(stacked, tmp_path / "given.safetensors")
    out = tmp_path / "updated.safetensors"
    options = ("--lr", LEARNING_RATE, "--weight-decay", DECAY)
    call(parity_tool, "adamw", tmp_path, tmp_path / "given.safetensors", out, *options)
    updated = load_file(out)
    assert adamw_errors(updated_in_torch(tmp_path, gradients, LEARNING_RATE), updated) < 1e-6
    assert adamw_errors(updated_in_torch(tmp_path, gradients, 1.001 * LEARNING_RATE), updated) > 1e-6
    assert adamw_errors(updated_in_torch(tmp_path, gradients, LEARNING_RATE, decay_norms=True), updated) > 1e-6


def torch_trajectory(directory, steps, lr=LEARNING_RATE, **options):
    """In fp64: two fp32 loops differ by up to 1e-6, either differs from this one by about half of that."""
    model = oracle.Oracle(directory, torch.float64)
    losses, norms = oracle.trajectory(model, steps, lr, DECAY, MAX_NORM, **options)
    return torch.tensor(losses), torch.tensor(norms), model.parameters


@pytest.mark.parametrize("layers, anchor", [("", "before"), ("3-4", "before"), ("1-2,4-5", "first")])
def test_trajectory_equals_pytorch(parity_tool, tmp_path, layers, anchor):
    config = make_models.write_model(tmp_path, "gqa", layers, anchor)
    steps = [[make_models.random_batch(config["vocab_size"], [17, 30, 12], seed=100 + i)] for i in range(STEPS)]
    flat = {f"{key}.{i}": tensor for i, (batch,) in enumerate(steps) for key, tensor in batch.items()}
    save_file(flat, tmp_path / "batches.safetensors")
    out = tmp_path / "trajectory.safetensors"
    options = ("--lr", LEARNING_RATE, "--weight-decay", DECAY, "--max-grad-norm", MAX_NORM, "--steps", STEPS)
    call(parity_tool, "trajectory", tmp_path, tmp_path / "batches.safetensors", out, *options)
    found = load_file(out)

    losses, norms, parameters = torch_trajectory(tmp_path, steps)
    assert norms.min() > 2 * MAX_NORM, "clipping must be active"

    def error(losses):
        return ((found["losses"] - losses) / losses).abs().max().item()

    assert error(losses) < 2e-6
    assert ((found["grad_norms"] - norms) / norms).abs().max() < 2e-5
    for name, parameter in parameters.items():
        assert oracle.relative_l2(found[name], parameter.detach()) < 1e-5, name
    if layers == "3-4":  # what the tolerance sees is the same for every plan
        assert error(torch_trajectory(tmp_path, steps, decay_norms=True)[0]) > 2e-6
        assert error(torch_trajectory(tmp_path, steps, lr=1.001 * LEARNING_RATE)[0]) > 2e-6
