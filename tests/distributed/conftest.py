"""A small model and its data."""

import json
import random
import subprocess

import pytest
from programs import built
from ranks import ENVIRONMENT

ARCH = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "torch_dtype": "float32",
}
WORDS = "river stone seven cloud green quick light north table music".split()


@pytest.fixture(scope="session")
def satune():
    return built("satune")


@pytest.fixture(scope="session")
def shim():
    return built("libfault_shim.so")


@pytest.fixture(scope="session")
def model(tmp_path_factory, satune):
    """A model directory and its records."""
    folder = tmp_path_factory.mktemp("model")
    rng = random.Random(5)

    def words(count):
        return " ".join(rng.choice(WORDS) for _ in range(count))

    records = [{"instruction": words(rng.randint(2, 6)), "input": words(2) if i % 3 == 0 else "",
                "output": words(rng.randint(2, 8))} for i in range(160)]
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "arch.json").write_text(json.dumps(ARCH))
    subprocess.run([satune, "init", folder / "arch.json", folder / "model", "--train-tokenizer", folder / "train.json",
                    "--seed", "3"], check=True, capture_output=True, env=ENVIRONMENT)
    return folder
