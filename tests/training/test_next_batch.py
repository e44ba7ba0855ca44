"""Sampling beside the update: both at once, with ratios to what was recorded, and a resume that is exact."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from polaris_jax.errors import UserError
from polaris_jax.sharding.mesh import make_meshes
from polaris_jax.training.metrics import read_metrics
from polaris_jax.training.next_batch import beside
from tests.training.test_loop import assert_same, params_of, without_times


def test_both_run_at_once():
    training, sampling = threading.Event(), threading.Event()

    def sample(what):
        sampling.set()
        assert training.wait(60)
        return what

    with beside(sample, "sampled", stop=pytest.fail) as sampled:
        training.set()
        assert sampling.wait(60)  # comes only while this waits
    assert sampled.result() == "sampled"


def test_sampling_is_stopped_where_training_fails():
    stopped = threading.Event()
    sample = lambda: stopped.wait(60) or pytest.fail("not stopped")  # noqa: E731
    with pytest.raises(KeyboardInterrupt), beside(sample, stop=stopped.set):  # not before the thread has ended
        raise KeyboardInterrupt


def test_an_error_of_the_sampling_comes_through():
    def sample():
        raise UserError("no prompt fits")

    with pytest.raises(UserError, match="no prompt fits"), beside(sample, stop=lambda: None):
        pass


def test_devices_are_split_or_refused_in_words(monkeypatch):
    with pytest.raises(UserError, match=r"config\.rollout\.devices: 1 of 1 devices leave none to train on"):
        make_meshes({"fsdp": -1}, 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.rollout\.devices: 1 needs one process, found 2"):
        make_meshes({"fsdp": -1}, 1)
    trainer, sampler = make_meshes({"fsdp": -1}, 0)
    assert trainer is sampler


def start(workdir, kill=0):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    program = Path(__file__).with_name("next_batch_program.py")
    return subprocess.run([sys.executable, program, workdir, str(kill)], env=environment).returncode


@pytest.mark.slow
def test_a_batch_one_step_old_has_its_own_logprobs_and_survives_a_kill(tmp_path):
    assert start(tmp_path / "unbroken") == 0
    seen = [json.loads(line) for line in (tmp_path / "unbroken.jsonl").read_text().splitlines()]
    rows = read_metrics(tmp_path / "unbroken")
    found = [row["update/ratio_max"] for row in rows]
    assert [row["update/skipped"] for row in rows] == [0] * 4
    assert seen[0]["now"] < 1e-4  # the first batch is on-policy
    assert found[0] == pytest.approx(1, abs=1e-4)
    for row, ratio in zip(seen[1:], found[1:], strict=True):
        assert row["before"] < 1e-4  # recorded by the parameters before the newest update
        assert row["now"] > 1e-2
        assert ratio == pytest.approx(row["ratio_max"], rel=1e-3)
        assert ratio > 1.01

    assert start(tmp_path / "broken", kill=3) != 0
    shutil.rmtree(tmp_path / "broken" / "rollouts")  # the checkpoint is enough
    assert start(tmp_path / "broken") == 0
    assert without_times(read_metrics(tmp_path / "broken")) == without_times(rows)
    assert_same(params_of(tmp_path / "broken"), params_of(tmp_path / "unbroken"))
