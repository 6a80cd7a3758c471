"""launch/kubernetes/jobset.yaml: its fields, and that it fits the script it runs."""

import re

import pytest
from stand_ins import LAUNCH, ROOT


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
