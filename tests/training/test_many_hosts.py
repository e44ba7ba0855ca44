"""Several processes train like one; when one of them is killed the others end, and together they go on to the bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from polaris_jax import hf
from polaris_jax.errors import LOST, PREEMPTED
from polaris_jax.training.metrics import read_metrics

PROGRAM = Path(__file__).with_name("run_of_many.py")
DEVICES = 4  # of all processes together
HEARTBEAT_S = 15
pytestmark = pytest.mark.slow


def start(workdir, count, *more):
    """Starts the run as `count` processes, each with its share of the devices; their output goes to files."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
        "JAX_PLATFORMS": "cpu",
    }
    processes = []
    for i in range(count):
        flags = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={i}"]
        flags += [f"--heartbeat_timeout_s={HEARTBEAT_S}", *more]
        with workdir.with_name(f"{workdir.name}.{i}.log").open("w") as log:
            command = [sys.executable, PROGRAM, f"--workdir={workdir}", *flags]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return processes


def output(workdir, process):
    return workdir.with_name(f"{workdir.name}.{process}.log").read_text()


def finish(workdir, processes):
    for i, process in enumerate(processes):
        assert process.wait(timeout=400) == 0, output(workdir, i)[-3000:]
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function: the directory of an unbroken run as so many processes."""
    directory, done = tmp_path_factory.mktemp("runs"), {}

    def run(count):
        if count not in done:
            done[count] = finish(directory / str(count), start(directory / str(count), count))
        return done[count]

    return run


def params_of(workdir):
    return jax.tree.map(np.asarray, hf.load(workdir / "train")[1])


def judged(workdir, count):
    """How many responses each process judged."""
    return [json.loads(output(workdir, i).splitlines()[-1])["judged"] for i in range(count)]


def of_the_model(row):
    """The metrics that do not depend on clocks or on which device sampled what."""
    clocks = ("_s", "peak_share", "device_hours", "compilations")
    return {k: v for k, v in row.items() if not k.startswith(("rollout/", "seconds/")) and not k.endswith(clocks)}


def assert_trained_alike(found, expected):
    """Tokens and rewards are the same, everything else to float32 rounding."""
    rows = [[of_the_model(row) for row in read_metrics(workdir / "train")] for workdir in (found, expected)]
    assert [row["step"] for row in rows[0]] == list(range(1, 9))  # each step is written once
    for left, right in zip(*rows, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
        for name in ("reward", "response_length", "diversity", "groups/mixed"):
            assert left[name] == right[name]
    left, right = params_of(found), params_of(expected)
    assert optax.tree.norm(jax.tree.map(np.subtract, left, right)) < 1e-4 * optax.tree.norm(right)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_like_one(runs, count):
    one, many = runs(1), runs(count)
    assert_trained_alike(many, one)
    texts = [(workdir / "train" / "samples.jsonl").read_text() for workdir in (one, many)]
    assert texts[0] == texts[1]
    for name in ("difficulty/measured/README.md", "difficulty/kept/README.md", "evaluation/scores.json"):
        assert (one / name).read_text() == (many / name).read_text().replace(str(many), str(one))
    assert {path.name for path in (many / "export").iterdir()} == {path.name for path in (one / "export").iterdir()}
    assert len(set(judged(many, count))) == 1
    assert sum(judged(many, count)) == sum(judged(one, 1))


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_and_both_go_on_to_the_bit(runs, tmp_path, victim):
    unbroken, workdir = runs(2), tmp_path / "run"
    processes = start(workdir, 2)
    while len(read_metrics(workdir / "train")) < 3:
        assert processes[victim].poll() is None, output(workdir, victim)[-3000:]
        time.sleep(0.05)
    processes[victim].kill()
    assert processes[1 - victim].wait(timeout=3 * HEARTBEAT_S) == LOST
    assert "start all of them again" in output(workdir, 1 - victim).splitlines()[-1]
    assert len(read_metrics(workdir / "train")) < 8
    finish(workdir, start(workdir, 2))
    rows = [[of_the_model(row) for row in read_metrics(each / "train")] for each in (workdir, unbroken)]
    assert rows[0] == rows[1]
    jax.tree.map(np.testing.assert_array_equal, params_of(workdir), params_of(unbroken))


def test_sigterm_to_one_ends_both_and_both_go_on(runs, tmp_path):
    unbroken, workdir = runs(2), tmp_path / "run"
    processes = start(workdir, 2)
    while len(read_metrics(workdir / "train")) < 3:
        assert processes[1].poll() is None, output(workdir, 1)[-3000:]
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=100) for process in processes] == [PREEMPTED, PREEMPTED]
    assert 3 <= len(read_metrics(workdir / "train")) < 8
    assert_trained_alike(finish(workdir, start(workdir, 2)), unbroken)


def test_a_mistake_ends_all_with_the_code_of_mistakes(tmp_path):
    processes = start(tmp_path / "run", 2, "--preset=huge")
    assert [process.wait(timeout=100) for process in processes] == [2, 2]
    for i in range(2):
        assert "error: config.model.preset: expected one of" in output(tmp_path / "run", i)
