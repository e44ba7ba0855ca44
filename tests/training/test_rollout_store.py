"""SIGTERM, and rollouts that outlive the process that sampled them."""

import os
import signal

import jax
import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.errors import PREEMPTED
from polaris_jax.rollout import store
from polaris_jax.rollout.replica import Replica
from polaris_jax.supervision import preemption
from polaris_jax.training import loop, sft, step
from polaris_jax.types import Rollout
from tests.conftest import killed


def params_of(workdir):
    return jax.tree.map(np.asarray, hf.load(workdir)[1])


def assert_same_run(left, right):
    jax.tree.map(np.testing.assert_array_equal, params_of(left.workdir), params_of(right.workdir))
    same = ["reward", "response_length", "update/entropy", "update/grad_norm", "diversity"]
    assert left.frame()[same].equals(right.frame()[same])


def newest(workdir):
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def terminated(monkeypatch, owner, name, at):
    """Sends this process SIGTERM at the `at`-th call of a function, once."""
    function, calls = getattr(owner, name), []

    def call(*args, **settings):
        calls.append(0)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **settings)

    monkeypatch.setattr(owner, name, call)


SETTINGS = {"training.checkpoint_every": 4, "training.steps": 3}


@pytest.fixture
def run(tiny_config, even_length_pool, tmp_path):
    return lambda name: loop.run(tiny_config(**SETTINGS), tmp_path / name)


@pytest.fixture
def preempted(run, tmp_path):
    """Runs until SIGTERM and returns the step of the checkpoint that is there then."""

    def until_sigterm(name):
        with pytest.raises(SystemExit) as ended:
            run(name)
        assert ended.value.code == PREEMPTED
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        return newest(tmp_path / name)

    return until_sigterm


@pytest.mark.slow
def test_after_sigterm_finished_rollouts_are_not_sampled_again(run, preempted, tmp_path, monkeypatch):
    unbroken = run("unbroken")
    rounds = unbroken.frame()["rollout/device_calls"].astype(int)
    terminated(monkeypatch, Replica, "start_round", at=rounds.iloc[0] + rounds.iloc[1] - 1)
    assert preempted("broken") == 1
    assert (tmp_path / "broken" / "rollouts" / "1.0").exists()
    resumed = run("broken")
    sampled, all_ = resumed.frame()["rollout/tokens"], unbroken.frame()["rollout/tokens"]
    assert 0 < sampled[2] < all_[2]
    assert sampled[3] == all_[3]
    assert_same_run(resumed, unbroken)
    assert not list((tmp_path / "broken" / "rollouts").iterdir())


@pytest.mark.slow
def test_after_sigterm_during_an_update_its_step_is_saved(run, preempted, monkeypatch):
    unbroken = run("unbroken")
    terminated(monkeypatch, step, "pack", at=2)
    assert preempted("broken") == 2
    resumed = run("broken")
    assert list(resumed.frame().index) == [1, 2, 3]
    assert_same_run(resumed, unbroken)


@pytest.mark.slow
def test_a_step_that_was_sampled_is_repeated_to_the_bit_without_sampling(run, tmp_path, monkeypatch):
    unbroken = run("unbroken")
    killed(monkeypatch, step, "pack", at=2)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    resumed = run("broken")
    assert resumed.frame()["rollout/tokens"].tolist()[:2] == [0, 0]
    assert_same_run(resumed, unbroken)
    gap = "update/sampler_trainer_gap"
    assert resumed.frame()[gap].equals(unbroken.frame()[gap])


@pytest.mark.slow
def test_sft_saves_at_sigterm(tiny_config, tmp_path, monkeypatch):
    unbroken = sft.run(tiny_config(), tmp_path / "unbroken")
    terminated(monkeypatch, sft, "pack", at=3)
    with pytest.raises(preemption.Preempted):
        sft.run(tiny_config(), tmp_path / "broken")
    assert newest(tmp_path / "broken") == 3
    resumed = sft.run(tiny_config(), tmp_path / "broken")
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in unbroken.rows]


ROLLOUTS = [
    Rollout("a", 0, np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32), np.float32([-1, -2, -0.1, 0]), "stop"),
    Rollout("b", 1, np.arange(2, dtype=np.int32), np.arange(1, dtype=np.int32), np.float32([-0.5]), "length"),
]


def test_kept_rollouts_are_read_to_the_bit_or_not_at_all(tmp_path):
    path, address = tmp_path / "rollouts" / "3.0", {"seed": 1, "params": "x"}
    assert store.load(path, address) == []
    store.keep(path, address, ROLLOUTS)
    for found, expected in zip(store.load(path, address), ROLLOUTS, strict=True):
        np.testing.assert_equal(vars(found), vars(expected))
    assert store.load(path, address | {"params": "y"}) == []
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-9] + b"?" + whole[-8:], b"", whole[20:]):
        path.write_bytes(damaged)
        assert store.load(path, address) == []
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    store.forget(tmp_path)
    assert path.exists()
    (tmp_path / "checkpoints" / "4").mkdir()
    store.forget(tmp_path)
    assert not path.exists()


def test_the_fingerprint_sees_the_last_bit():
    params = {"a": np.float32([1, 2]), "b": np.float32([[0.5]])}
    changed = params | {"b": np.nextafter(params["b"], np.float32(1))}
    fingerprint = store.fingerprint
    assert fingerprint(params) == fingerprint(dict(params)) != fingerprint(changed)
