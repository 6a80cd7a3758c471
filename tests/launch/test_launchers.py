"""The launch scripts: what ranks get from them, and what becomes of signals and exit codes. The program is a
stand-in; torchrun is the real one, Slurm and Open MPI are stand-ins (and mpirun the real one where there is one)."""

import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import subprocess
import termios
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TORCHRUN = ROOT / ".venv" / "bin" / "torchrun"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm" / "train.sbatch"])

needs_torchrun = pytest.mark.skipif(not TORCHRUN.exists(), reason=f"torchrun is not at {TORCHRUN}")

# A rank: says what it got, counts its signals, and runs until it is stopped or $OUT/go is there.
STAND_IN = r"""#!/bin/bash
rank=${RANK:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-none}}}
stop() {
  echo "$1" >>"$OUT/signals-$rank"
  sleep "0.$rank" # ranks do not end together
  if [[ -n ${SATUNE_STOPPED_FILE:-} ]]; then : >"$SATUNE_STOPPED_FILE"; exit 0; fi
  exit 4
}
trap 'stop TERM' TERM
trap 'stop INT' INT
trap 'echo USR1 >>"$OUT/signals-$rank"' USR1
rm -f "${SATUNE_STOPPED_FILE:-}"
printf '%s\n' "$@" >"$OUT/arguments-$rank"
env >"$OUT/env.tmp-$rank"
mv "$OUT/env.tmp-$rank" "$OUT/env-$rank-${TORCHELASTIC_RESTART_COUNT:-0}"
if [[ $rank == "${FAILING_RANK:-}" && ${TORCHELASTIC_RESTART_COUNT:-0} == 0 ]]; then exit 3; fi
while [[ ! -e $OUT/go ]]; do sleep 0.05; done
"""


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Run:
    """A script in a process of its own, over stand-ins, with a folder for what its ranks say."""

    def __init__(self, folder, command, programs=None, **variables):
        self.out = folder / "out"
        self.out.mkdir(exist_ok=True)
        program = write_program(folder / "satune", STAND_IN)
        for name, text in (programs or {}).items():
            write_program(folder / "programs" / name, text)
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM", "OMPI", "TORCHELASTIC"))}
        environment = clean | {"OUT": str(self.out), "SATUNE": str(program), "OMP_NUM_THREADS": "1",
                               "PATH": f"{folder / 'programs'}:{os.environ['PATH']}"} | variables
        self.log = (folder / f"log-{time.monotonic_ns()}").open("w+b")
        self.process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, stdout=self.log,
                                        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def text(self):
        self.log.seek(0)
        return self.log.read().decode()

    def await_files(self, *names, seconds=60):
        end = time.monotonic() + seconds
        while not all((self.out / name).exists() for name in names):
            assert time.monotonic() < end, f"no {names}: {self.text()}"
            assert self.process.poll() is None or all((self.out / name).exists() for name in names), self.text()
            time.sleep(0.02)

    def environment(self, rank, attempt=0):
        lines = (self.out / f"env-{rank}-{attempt}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def signals(self, rank):
        file = self.out / f"signals-{rank}"
        return file.read_text().split() if file.exists() else []

    def await_signal(self, rank, name):
        end = time.monotonic() + 20
        while name not in self.signals(rank):
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)

    def go(self):
        (self.out / "go").touch()

    def wait(self):
        return self.process.wait(timeout=90)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go()  # ranks of a failed test end as well
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refused(script, *arguments, env=None):
    run = subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True,
                         env={"PATH": os.environ["PATH"]} | (env or {}))
    assert run.returncode == 2, run.stdout + run.stderr
    return run.stderr


# ---- all scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    if not script.name.startswith(("lib_", "jobs")):
        assert os.access(script, os.X_OK), f"{script} is not executable"


def test_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    run = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", ["train.sh", "train_nodes.sh", "train_mpi.sh"])
def test_help_names_every_variable_that_is_read(script):
    text = subprocess.run([LAUNCH / script, "--help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  ([A-Z_]+) ", text, re.M))
    libraries = ["lib_ranks.sh"] + ([] if script == "train_mpi.sh" else ["lib_torchrun.sh"])
    source = "".join((LAUNCH / name).read_text() for name in [script, *libraries])
    read = set(re.findall(r"\$\{([A-Z_]+):-", source)) | ({"NNODES", "NODE_RANK", "HEAD"} if "nodes" in script else set())
    assert listed == read - {"CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize("visible, processes", [(None, 3), ("0,2", 2), ("", 1), ("-1", 1), ("0,1,2,3,4", 3)])
def test_one_rank_for_each_card(tmp_path, visible, processes):
    source = (LAUNCH / "lib_ranks.sh").read_text().replace("/dev/nvidia", str(tmp_path / "nvidia"))
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl"):
        (tmp_path / name).touch()
    environment = {"PATH": os.environ["PATH"]} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    run = subprocess.run(["bash", "-c", source + "\ndefault_processes"], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [str(processes)], run.stderr


def test_one_rank_without_cards(tmp_path):
    source = (LAUNCH / "lib_ranks.sh").read_text().replace("/dev/nvidia", str(tmp_path / "nvidia"))
    run = subprocess.run(["bash", "-c", source + "\ndefault_processes"], capture_output=True, text=True)
    assert run.stdout.split() == ["1"], run.stderr


# ---- torchrun


@needs_torchrun
def test_train_gives_ranks_torchruns_variables_and_the_arguments(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json", "a.b=c d", "--resume", "auto"], NPROC="2",
             TORCHRUN=str(TORCHRUN)) as run:
        run.await_files("env-0-0", "env-1-0")
        run.go()
        assert run.wait() == 0, run.text()
        for rank in (0, 1):
            variables = run.environment(rank)
            assert variables["RANK"] == variables["LOCAL_RANK"] == str(rank)
            assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "2"
            assert variables["MASTER_ADDR"] == "127.0.0.1"
            assert variables["TORCHELASTIC_USE_AGENT_STORE"] == "True"
            assert variables["TORCHELASTIC_ERROR_FILE"]
            arguments = (run.out / f"arguments-{rank}").read_text().splitlines()
            assert arguments == ["train", "config.json", "a.b=c d", "--resume", "auto"]
        assert not pathlib.Path(run.environment(0)["SATUNE_STOPPED_FILE"]).parent.exists()


@needs_torchrun
def test_train_passes_signals_to_ranks_once_and_ends_with_4(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), MAX_RESTARTS="3") as run:
        run.await_files("env-0-0", "env-1-0")
        run.process.send_signal(signal.SIGUSR1)
        run.await_signal(0, "USR1")
        run.await_signal(1, "USR1")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()
        assert run.signals(0) == run.signals(1) == ["USR1", "TERM"]
        assert not (run.out / "env-0-1").exists(), "a stop is not a failure that starts the ranks again"


@needs_torchrun
def test_train_starts_ranks_again_after_a_failure(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(TORCHRUN), MAX_RESTARTS="1",
             FAILING_RANK="1") as run:
        run.await_files("env-0-1", "env-1-1")
        run.go()
        assert run.wait() == 0, run.text()


@needs_torchrun
def test_train_fails_where_a_rank_does(tmp_path):
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="1", TORCHRUN=str(TORCHRUN), FAILING_RANK="0") as run:
        assert run.wait() == 1, run.text()


@needs_torchrun
def test_stop_before_there_are_ranks_ends_with_4(tmp_path):
    slow = write_program(tmp_path / "slow" / "torchrun", '#!/bin/bash\ntouch "$OUT/started"\nexec sleep 60\n')
    with Run(tmp_path, [LAUNCH / "train.sh", "config.json"], NPROC="2", TORCHRUN=str(slow)) as run:
        run.await_files("started")
        time.sleep(0.1)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()


@needs_torchrun
def test_ctrl_c_reaches_ranks_once(tmp_path):
    master, terminal = pty.openpty()

    def on_terminal():
        os.setsid()
        import fcntl
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    out = tmp_path / "out"
    out.mkdir()
    program = write_program(tmp_path / "satune", STAND_IN)
    environment = os.environ | {"OUT": str(out), "SATUNE": str(program), "NPROC": "2", "TORCHRUN": str(TORCHRUN)}
    process = subprocess.Popen([LAUNCH / "train.sh", "config.json"], env=environment, stdin=terminal,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=on_terminal)
    try:
        end = time.monotonic() + 60
        while not all((out / f"env-{rank}-0").exists() for rank in (0, 1)):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        os.write(master, b"\x03")
        assert process.wait(timeout=60) == 4
        assert [(out / f"signals-{rank}").read_text() for rank in (0, 1)] == ["INT\n", "INT\n"]
    finally:
        (out / "go").touch()
        if process.poll() is None:
            process.kill()
        os.close(master)
        os.close(terminal)


@needs_torchrun
def test_nodes_form_one_run(tmp_path):
    port = str(free_port())
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()

    def node(folder, rank):
        return Run(folder, [LAUNCH / "train_nodes.sh", "config.json", "a=b"], TORCHRUN=str(TORCHRUN), NPROC="1",
                   NNODES="2", NODE_RANK=str(rank), HEAD="127.0.0.1", HEAD_PORT=port)

    with node(tmp_path / "one", 0) as one, node(tmp_path / "other", 1) as other:
        end = time.monotonic() + 90
        while sum(len(list(run.out.glob("env-*"))) for run in (one, other)) < 2:
            assert time.monotonic() < end, one.text() + other.text()
            time.sleep(0.05)
        ranks = {}
        for run in (one, other):
            (file,) = run.out.glob("env-*")
            ranks[int(file.name.split("-")[1])] = run
        assert sorted(ranks) == [0, 1]
        environments = [run.environment(rank) for rank, run in sorted(ranks.items())]
        for variables in environments:
            assert variables["WORLD_SIZE"] == "2"
            assert variables["LOCAL_RANK"] == "0" and variables["LOCAL_WORLD_SIZE"] == "1"
            assert variables["MASTER_ADDR"] == "127.0.0.1"
        assert environments[0]["MASTER_PORT"] == environments[1]["MASTER_PORT"]
        assert environments[0]["TORCHELASTIC_RUN_ID"] == environments[1]["TORCHELASTIC_RUN_ID"]
        for run in (one, other):
            run.process.send_signal(signal.SIGTERM)
        assert [one.wait(), other.wait()] == [4, 4], one.text() + other.text()


@pytest.mark.parametrize("variables, words", [
    ({}, ["NNODES"]),
    ({"NNODES": "2", "NODE_RANK": "0"}, ["HEAD"]),
    ({"NNODES": "two", "NODE_RANK": "0", "HEAD": "h"}, ["NNODES", "found two"]),
    ({"NNODES": "2", "NODE_RANK": "2", "HEAD": "h"}, ["NODE_RANK", "less than NNODES=2"]),
    ({"NNODES": "2", "NODE_RANK": "0", "HEAD": "h", "SATUNE": "/nowhere/satune"}, ["/nowhere/satune"]),
    ({"NNODES": "2", "NODE_RANK": "0", "HEAD": "h", "SATUNE": "/bin/true", "TORCHRUN": "/nowhere/torchrun"}, ["/nowhere/torchrun"]),
])
def test_nodes_refuse_what_is_missing(variables, words):
    message = refused("train_nodes.sh", "config.json", env=variables)
    assert len(message.splitlines()) == 1 and all(word in message for word in words), message


# ---- Open MPI

FAKE_MPIRUN = r"""#!/bin/bash
# Starts ranks with the variables that are named, as children, beside a child that is none of them.
printf '%s\n' "$@" >"$OUT/mpirun"
processes=$2 named=()
while [[ $1 != */satune ]]; do
  if [[ $1 == -x ]]; then named+=("$2=${!2}"); fi
  shift
done
bash -c 'trap "touch $OUT/ssh-signalled" TERM; while [[ ! -e $OUT/end-ssh ]]; do sleep 0.05; done' &
other=$! started=() code=0
for ((rank = 0; rank < processes; ++rank)); do
  env -u MASTER_ADDR -u MASTER_PORT -u SATUNE_STOPPED_FILE "${named[@]}" OMPI_COMM_WORLD_RANK=$rank \
    OMPI_COMM_WORLD_SIZE=$processes "$@" &
  started+=($!)
done
for id in "${started[@]}"; do wait "$id" || code=$?; done
touch "$OUT/end-ssh"
wait "$other"
exit $code
"""


def test_mpi_gives_ranks_a_meeting_place_and_the_arguments(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# the cluster\n\n  127.0.0.9 slots=2 # head\nother slots=2\n")
    with Run(tmp_path, [LAUNCH / "train_mpi.sh", "3", "config.json", "a=b c"], {"mpirun": FAKE_MPIRUN},
             HOSTFILE=str(hosts)) as run:
        run.await_files("env-0-0", "env-1-0", "env-2-0")
        run.go()
        assert run.wait() == 0, run.text()
        for rank in range(3):
            variables = run.environment(rank)
            assert variables["MASTER_ADDR"] == "127.0.0.9" and variables["MASTER_PORT"] == "29500"
            assert variables["SATUNE_STOPPED_FILE"].startswith(str(tmp_path)), "a folder that machines share"
            assert (run.out / f"arguments-{rank}").read_text().splitlines() == ["train", "config.json", "a=b c"]
        given = (run.out / "mpirun").read_text().splitlines()
        assert given[given.index("--hostfile") + 1] == str(hosts)
        assert given[given.index("--bind-to") + 1] == "none"


def test_mpi_stops_ranks_and_nothing_else(tmp_path):
    with Run(tmp_path, [LAUNCH / "train_mpi.sh", "2", "config.json"], {"mpirun": FAKE_MPIRUN}) as run:
        run.await_files("env-0-0", "env-1-0")
        assert run.environment(0)["MASTER_ADDR"] == "127.0.0.1"
        run.process.send_signal(signal.SIGUSR1)
        run.await_signal(1, "USR1")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()
        assert run.signals(0) == run.signals(1) == ["USR1", "TERM"]
        assert not (run.out / "ssh-signalled").exists()
        assert not list(tmp_path.glob(".satune-stopped-*"))


def test_mpi_with_the_real_mpirun(tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("Open MPI is not installed")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    with Run(tmp_path, [LAUNCH / "train_mpi.sh", "2", "config.json"], OMPI_MCA_rmaps_base_oversubscribe="1",
             **root) as run:
        run.await_files("env-0-0", "env-1-0")
        for rank in (0, 1):
            variables = run.environment(rank)
            assert variables["OMPI_COMM_WORLD_RANK"] == variables["OMPI_COMM_WORLD_LOCAL_RANK"] == str(rank)
            assert variables["OMPI_COMM_WORLD_SIZE"] == variables["OMPI_COMM_WORLD_LOCAL_SIZE"] == "2"
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 4, run.text()
        assert run.signals(0) == run.signals(1) == ["TERM"]


def test_mpi_refuses_what_is_missing(tmp_path):
    assert "usage" in refused("train_mpi.sh", "2")
    assert "found two" in refused("train_mpi.sh", "two", "config.json")
    assert "mpirun" in refused("train_mpi.sh", "2", "c.json", env={"SATUNE": "/bin/true", "MPIRUN": "/nowhere/mpirun"})
    message = refused("train_mpi.sh", "2", "c.json",
                      env={"SATUNE": "/bin/true", "MPIRUN": "/bin/true", "HOSTFILE": str(tmp_path / "none")})
    assert "HOSTFILE" in message


# ---- Slurm

# As srun does with --kill-on-bad-exit: the first bad code kills the other ranks, and SIGTERM to srun all of them.
FAKE_SRUN = r"""#!/bin/bash
printf '%s\n' "$@" >"$OUT/srun"
while [[ $1 == -* ]]; do shift; done
trap 'kill -9 $(jobs -p)' TERM
started=() code=0
for rank in 0 1 2 3; do
  SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) SLURM_NODEID=$((rank / 2)) "$@" &
  started+=($!)
done
printf '%s\n' "${started[@]}" >"$OUT/ids"
for _ in "${started[@]}"; do
  wait -n && one=0 || one=$?
  if ((one != 0)); then kill -9 "${started[@]}" 2>/dev/null; fi
  if ((one > code)); then code=$one; fi
done
exit $code
"""
FAKE_SCANCEL = r"""#!/bin/bash
echo "$@" >>"$OUT/scancel"
for id in $(<"$OUT/ids"); do kill -s "${1#--signal=}" "$id"; done
"""
FAKE_SCONTROL = r"""#!/bin/bash
if [[ "$1 $2" == "show hostnames" ]]; then printf 'node7\nnode8\n'; else echo "$@" >>"$OUT/scontrol"; fi
"""
SLURM = {"srun": FAKE_SRUN, "scancel": FAKE_SCANCEL, "scontrol": FAKE_SCONTROL}


def batch_job(folder, *arguments, **variables):
    return Run(folder, ["bash", LAUNCH / "slurm" / "train.sbatch", *arguments], SLURM, SLURM_JOB_ID="123456",
               SLURM_JOB_NODELIST="node[7-8]", SLURM_SUBMIT_DIR=str(folder), SLURM_CPUS_PER_TASK="12",
               SATUNE_STOP_SECONDS="0.3", **variables)


def batch_options():
    lines = (LAUNCH / "slurm" / "train.sbatch").read_text().splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_slurm_options_stand_before_the_first_command():
    lines = (LAUNCH / "slurm" / "train.sbatch").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(i < first for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    options = batch_options()
    assert "--signal=B:USR1@300" in options and "--requeue" in options and "--open-mode=append" in options
    assert not any(option.startswith("--gpus-per-task") for option in options)


def test_slurm_gives_ranks_a_meeting_place_and_the_arguments(tmp_path):
    with batch_job(tmp_path, "config.json", "a=b c") as job:
        job.await_files(*(f"env-{rank}-0" for rank in range(4)))
        job.go()
        assert job.wait() == 0, job.text()
        for rank in range(4):
            variables = job.environment(rank)
            assert variables["MASTER_ADDR"] == "node7"
            assert 20000 <= int(variables["MASTER_PORT"]) < 32768
            assert variables["SATUNE_STOPPED_FILE"].startswith(str(tmp_path))
            assert "RANK" not in variables, "ranks take Slurm's own variables"
            assert (job.out / f"arguments-{rank}").read_text().splitlines() == ["train", "config.json", "a=b c"]
        given = (job.out / "srun").read_text().splitlines()
        assert "--kill-on-bad-exit=1" in given and "--cpus-per-task=12" in given and "--wait=0" in given
        assert not (job.out / "scontrol").exists(), "a finished run is not queued again"


def test_slurm_saves_and_queues_again_when_time_is_nearly_up(tmp_path):
    with batch_job(tmp_path, "config.json") as job:
        job.await_files(*(f"env-{rank}-0" for rank in range(4)))
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait() == 4, job.text()
        for rank in range(4):
            assert job.signals(rank) == ["USR1", "TERM"]
        assert (job.out / "scancel").read_text().splitlines() == ["--signal=USR1 123456", "--signal=TERM 123456"]
        assert (job.out / "scontrol").read_text().splitlines() == ["requeue 123456"]
        assert not list(tmp_path.glob(".satune-stopped-*"))


def test_slurm_does_not_queue_a_failure_again(tmp_path):
    with batch_job(tmp_path, "config.json", FAILING_RANK="2") as job:
        assert job.wait() not in (0, 4), job.text()
        assert not (job.out / "scontrol").exists()


def test_slurm_forgets_an_earlier_stop(tmp_path):
    (tmp_path / ".satune-stopped-123456").touch()
    with batch_job(tmp_path, "config.json", FAILING_RANK="2") as job:
        assert job.wait() not in (0, 4), job.text()


# ---- Kubernetes

@pytest.fixture(scope="module")
def jobset():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load((LAUNCH / "kubernetes" / "jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def container(job):
    (container,) = job["template"]["spec"]["containers"]
    return container


def variables_of(container):
    return {entry["name"]: entry.get("value") or entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"]}


def test_jobset_starts_one_pod_a_node_and_all_of_them_anew(jobset, job):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_jobset_fits_the_script_it_runs(jobset, job, container):
    (script,) = container["command"]
    text = (ROOT / script).read_text()
    variables = variables_of(container)
    for name in variables:
        assert re.search(rf"^  {name} ", text, re.M), f"{script} does not know {name}"
    assert int(variables["NNODES"]) == job["completions"]
    assert variables["NODE_RANK"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    replicated = jobset["spec"]["replicatedJobs"][0]["name"]
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    assert variables["HEAD"] == f"{name}-{replicated}-0-0.{subdomain}"
    assert int(variables["NPROC"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert (ROOT / container["args"][0]).exists()


def test_jobset_gives_time_to_write_an_8b_snapshot(job):
    pod = job["template"]["spec"]
    snapshot_gb = 8.03e9 * 3 * 4 / 1e9  # fp32 master weights and two moments
    slow_disk_gb_per_s = 0.2  # the rate that the file states
    assert pod["terminationGracePeriodSeconds"] >= snapshot_gb / slow_disk_gb_per_s + 60


def test_jobset_mounts_memory_for_nccl_and_what_the_arguments_name(job, container):
    volumes = {volume["name"]: volume for volume in job["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert set(mount["name"] for mount in mounts.values()) == set(volumes)
    for argument in container["args"][1:]:
        key, path = argument.split("=")
        mount = mounts["/" + path.split("/")[1]]
        assert mount.get("readOnly", False) == (key in ("model_name_or_path", "train_file")), key


