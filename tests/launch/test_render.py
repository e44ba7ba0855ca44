"""What starts a run on many hosts: every template renders to a script or a JobSet that its reader accepts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from polaris_jax.errors import UserError

LAUNCH = Path(__file__).parents[2] / "launch"
sys.path.insert(0, str(LAUNCH))
from render import COMMAND, TARGETS, render  # noqa: E402

SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text(encoding="utf-8"))
COMMON = {"name": "polaris", "command": COMMAND, "restarts": 100, "volume": "runs", "image": "eu.pkg.dev/p/jax:1"}
VALUES = {
    "slurm": {"hosts": 4, "devices": 8},
    "gke_gpu": {"hosts": 4, "devices": 8, "accelerator": "nvidia-h100-80gb"},
    "gke_tpu": {"topology": "4x4x4", "accelerator": "tpu-v5p-slice"},
    "tpu_vm": {"topology": "4x4x4", "accelerator": "v5p-128", "version": "v2-alpha-tpuv5", "zone": "us-east5-a"},
}


def rendered(target, **changes):
    return render(target, COMMON | VALUES[target] | changes)


@pytest.mark.parametrize("target", ["slurm", "tpu_vm"])
def test_scripts_are_bash(target, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text(rendered(target))
    subprocess.run(["bash", "-n", script], check=True)
    assert COMMAND in script.read_text()
    for part in script.read_text().split("--command='")[1:]:  # what the hosts run
        subprocess.run(["bash", "-n", "-c", part.split("'")[0]], check=True)


@pytest.mark.parametrize("target", ["gke_gpu", "gke_tpu"])
def test_jobsets_fit_their_schema(target):
    jobset = yaml.safe_load(rendered(target))
    jsonschema.validate(jobset, SCHEMA)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    hosts = 16 if target == "gke_tpu" else 4
    assert job["parallelism"] == job["completions"] == hosts
    container = job["template"]["spec"]["containers"][0]
    assert container["command"][-1].startswith(f"exec {COMMAND}")
    subprocess.run(["bash", "-n", "-c", container["command"][-1]], check=True)
    (chips,) = container["resources"]["limits"].values()
    assert chips == (4 if target == "gke_tpu" else 8)


def test_processes_on_gpu_nodes_find_the_first_pod():
    job = yaml.safe_load(rendered("gke_gpu", name="mine"))["spec"]["replicatedJobs"][0]
    command = job["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    coordinator, count, index = command.split()[-3:]
    assert coordinator == f"--coordinator=mine-{job['name']}-0-0.mine:8482"  # JobSet's: its name, job, number, pod
    assert (count, index) == ("--num_processes=4", "--process_id=$JOB_COMPLETION_INDEX")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_value_is_needed_and_checked(target):
    assert not re.search("@[A-Z]+@", rendered(target))
    for key in VALUES[target]:
        with pytest.raises(UserError, match="needed for --target"):
            rendered(target, **{key: None})
    bad = {"name": ("a b", "Big"), "command": ("a; echo 'b'", "$(b)"), "restarts": (";",), "volume": ("a b",)}
    for key, value in ((key, value) for key, values in bad.items() for value in values):
        with pytest.raises(UserError, match=f"--{key}"):
            rendered(target, **{key: value})


def test_topologies_that_no_hosts_have_are_refused():
    for topology in ("4", "4x", "3x1", "axb"):
        with pytest.raises(UserError, match="--topology"):
            rendered("gke_tpu", topology=topology)
