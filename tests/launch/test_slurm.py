"""launch/slurm/train.sbatch over stand-ins for srun, scancel and scontrol."""

import signal

from stand_ins import LAUNCH, Run, refused

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


def test_slurm_refuses_a_shell_without_a_job():
    assert "expected a job of Slurm" in refused("slurm/train.sbatch", "config.json")
