"""A launch script in a process of its own, over stand-ins for satune and for what a machine lacks."""

import os
import pathlib
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# A rank: says what it got, counts its signals, and runs until it is stopped or $OUT/go is there.
STAND_IN = r"""#!/bin/bash
rank=${RANK:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-none}}}
if [[ -n ${LOADING_SECONDS:-} ]]; then # without handlers, as satune while it loads its libraries
  touch "$OUT/loading-$rank"
  sleep "$LOADING_SECONDS"
fi
stop() {
  echo "$1" >>"$OUT/signals-$rank"
  if [[ -n ${STUBBORN:-} && ! -e $OUT/asked-$rank ]]; then touch "$OUT/asked-$rank"; return; fi
  if [[ -n ${STUBBORN:-} ]]; then trap - "$1"; kill -s "$1" $$; fi
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
if [[ $rank == "${FAILING_RANK:-}" && ${TORCHELASTIC_RESTART_COUNT:-0} == 0 ]]; then
  if [[ -n ${FAILING_WITH_A_FILE:-} ]]; then
    echo '{"message": {"message": "m", "errorCode": 3, "extraInfo": {"timestamp": "1"}}}' >"$TORCHELASTIC_ERROR_FILE"
  fi
  exit 3
fi
# In the background: while bash waits for a command in front, it can take SIGINT for that command's business.
while [[ ! -e $OUT/go ]]; do sleep 0.05 & wait $!; done
"""


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# Without them mpirun starts nothing for root, as whom a container may run these tests.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


class Run:
    """A script in a process of its own, over stand-ins, with a folder for what its ranks say."""

    def __init__(self, folder, command, programs=None, **variables):
        self.out = folder / "out"
        self.out.mkdir(exist_ok=True)
        program = write_program(folder / "satune", STAND_IN)
        for name, text in (programs or {}).items():
            write_program(folder / "programs" / name, text)
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM", "OMPI", "TORCHELASTIC"))}
        environment = clean | AS_ROOT | {"OUT": str(self.out), "SATUNE": str(program), "OMP_NUM_THREADS": "1",
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
