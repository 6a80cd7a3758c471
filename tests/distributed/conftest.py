"""Runs of several real processes: a small model, its data, and ranks that tests can signal and break."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from programs import built

# Two cores carry four ranks: threads that wait must sleep.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "SLURM_", "TORCHELASTIC"))}
ENVIRONMENT |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}

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


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def settings(model, output, **more):
    """A config of 12 rows a step in fp32, written beside the model; its path."""
    config = {
        "model_name_or_path": str(model / "model"), "train_file": str(model / "train.json"), "output_dir": str(output),
        "token_cache_dir": str(model / "cache"), "sharing": {"layers": "2-3"}, "max_length": 128, "packing": False,
        "max_steps": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 12, "learning_rate": 0.005,
        "warmup_steps": 1, "weight_decay": 0.1, "val_size": 0.1, "eval_steps": 0, "save_steps": 2,
        "save_total_limit": 10, "precision": "fp32", "device": "cpu", "num_threads": 1, "export_at_end": False,
        "heartbeat_timeout": 6,
    }
    config |= more
    path = output.parent / f"{output.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


class Ranks:
    """`count` processes of one run, started without any launcher: rank 0 holds the store."""

    def __init__(self, satune, config, count, logs, arguments=(), environment=None):
        """`environment`: {rank: {NAME: value}} of single ranks."""
        self.logs = pathlib.Path(logs)
        self.logs.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.processes = []
        for rank in range(count):
            env = ENVIRONMENT | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                                 "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            env |= (environment or {}).get(rank, {})
            with open(self.logs / f"rank-{rank}.log", "wb") as log:
                self.processes.append(subprocess.Popen([satune, "train", config, *map(str, arguments)], env=env,
                                                       stdout=log, stderr=subprocess.STDOUT))

    def send(self, number, rank):
        os.kill(self.processes[rank].pid, number)

    def wait(self, timeout=90):
        """Exit codes by rank (negative: the signal that killed it); whoever is left after the time is killed."""
        end = time.monotonic() + timeout
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            self.end()

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def log(self, rank):
        return (self.logs / f"rank-{rank}.log").read_text()

    def error(self, rank):
        """The rank's one error line."""
        lines = [line for line in self.log(rank).splitlines() if line.startswith("satune: error: ")]
        assert len(lines) == 1, self.log(rank)
        return lines[0]


def rows(output):
    path = pathlib.Path(output) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def await_rows(output, count, timeout=60):
    end = time.monotonic() + timeout
    while len(rows(output)) < count:
        assert time.monotonic() < end, f"no {count} steps in {output} after {timeout} s"
        time.sleep(0.02)


REPEATABLE = ("step", "loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "mean_token_accuracy", "eval_loss")


def trajectory(output):
    return [{key: row.get(key) for key in REPEATABLE} for row in rows(output)]


def snapshots(output):
    return sorted(path.name for path in (pathlib.Path(output) / "snapshots").glob("step-*")
                  if "." not in path.name)


def state(output, step):
    """{"master.NAME": numbers, ...} of a snapshot, put together from its ranks' files."""
    import numpy
    from safetensors import safe_open

    folder = pathlib.Path(output) / "snapshots" / f"step-{step:08}"
    shards = json.loads((folder / "state.json").read_text())["shards"]
    pieces = {}
    for shard in shards:
        with safe_open(folder / shard["file"], framework="numpy") as file:
            for name in file.keys():
                begin, end = shard["ranges"][name.split(".", 1)[1]]
                pieces.setdefault(name, []).append((begin, end, file.get_tensor(name)))
    whole = {}
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[0])
        assert [part[0] for part in parts] == [0] + [part[1] for part in parts[:-1]], name
        whole[name] = numpy.concatenate([part[2] for part in parts])
    return whole


def same_state(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def run(satune, config, count, logs, arguments=(), environment=None, codes=None):
    """A run to its end; the ranks."""
    ranks = Ranks(satune, config, count, logs, arguments, environment)
    found = ranks.wait()
    assert found == (codes or [0] * count), "\n".join(f"--- rank {r}: {found[r]}\n{ranks.log(r)}" for r in range(count))
    return ranks
