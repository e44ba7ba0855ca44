"""Checkpoints: whole or not there, exact, found damaged, kept as configured, and the same on any number of devices."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from polaris_jax import files, hf
from polaris_jax.errors import UserError
from polaris_jax.training import checkpoint
from polaris_jax.training.checkpoint import Checkpoints
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import read_metrics
from polaris_jax.training.state import TrainState
from tests.conftest import smaller_config

ROOT = Path(__file__).parents[2]


def state_at(step, size=1000):
    values = np.random.default_rng(step).normal(size=size).astype(np.float32)
    return TrainState(jnp.int32(step), {"w": jnp.asarray(values)}, {"m": jnp.asarray(values**2)})


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def settings(**changed):
    return smaller_config(**{f"training.{key}": value for key, value in changed.items()}).training


def save(workdir, steps, metrics=None, **changed):
    with Checkpoints(workdir, settings(**changed)) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), HostState(stage_start=step), (metrics or {}).get(step))


def restore(workdir):
    with Checkpoints(workdir, settings()) as checkpoints:
        return checkpoints.restore(state_at(0))


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture
def warnings(monkeypatch):
    """What was told, one text a warning."""
    told = []
    logging = SimpleNamespace(warning=lambda text, *values: told.append(text % values))
    monkeypatch.setattr(checkpoint, "logging", logging)
    return told


def test_what_is_saved_is_the_state_of_that_step_though_training_goes_on_in_its_memory(tmp_path):
    go_on = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = state_at(1, size=4_000_000)
    before = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path, settings()) as checkpoints:
        checkpoints.save(state, HostState())
        for _ in range(8):
            state = go_on(state)
        checkpoints.wait()
        assert_same(checkpoints.restore(state)[0], before)


def test_what_is_read_takes_the_place_of_what_it_replaces(tmp_path):
    save(tmp_path, [1])
    like = state_at(0)
    with Checkpoints(tmp_path, settings()) as checkpoints:
        found, _ = checkpoints.restore(like)
    assert_same(found, state_at(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(like))


def files_below(directory):
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, os.unlink])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(tmp_path, warnings, harm):
    save(tmp_path, [1, 2])
    largest = max(files_below(tmp_path / "checkpoints" / "2"), key=lambda path: path.stat().st_size)
    harm(largest)
    state, host = restore(tmp_path)
    assert_same(state, state_at(1))
    assert host.stage_start == 1
    assert len(warnings) == 1
    assert str(largest.relative_to(tmp_path / "checkpoints" / "2")) in warnings[0]
    assert "the checkpoint before it is used" in warnings[0]
    assert files_below(tmp_path / "damaged" / "2")
    save(tmp_path, [2])
    assert_same(restore(tmp_path)[0], state_at(2))
    assert len(warnings) == 1


def test_damage_to_any_file_is_found(tmp_path):
    save(tmp_path, [1])
    whole = tmp_path / "checkpoints" / "1"
    assert files.damage(whole) == {}
    items = [path for path in files_below(whole) if path.parent != whole]
    assert len(items) > 5
    for path in [*items, whole / files.CHECKSUMS]:
        for harm in (truncate, flip, os.unlink):
            if path.stat().st_size:
                copy = shutil.copytree(whole, tmp_path / "copy")
                harm(copy / path.relative_to(whole))
                assert files.damage(copy), (path, harm)
                shutil.rmtree(copy)


def test_where_no_checkpoint_is_whole_the_run_begins_anew(tmp_path, warnings):
    save(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / files.CHECKSUMS).unlink()
    assert restore(tmp_path) is None
    assert len(warnings) == 2
    save(tmp_path, [1])
    assert_same(restore(tmp_path)[0], state_at(1))


def test_what_a_killed_save_left_is_ignored_and_removed(tmp_path):
    save(tmp_path, [2])
    shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp")
    assert_same(restore(tmp_path)[0], state_at(2))
    save(tmp_path, [4])
    assert steps(tmp_path) == [2, 4]
    assert files.damage(tmp_path / "checkpoints" / "4") == {}


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"keep": 1}, [8]),
        ({"keep": 2}, [7, 8]),
        ({"keep": 1, "keep_every": 3}, [3, 6, 8]),
        ({"keep": 1, "keep_best": "reward"}, [4, 8]),
        ({"keep": 1, "keep_best": "-reward"}, [2, 8]),
        ({"keep": 2, "keep_every": 5, "keep_best": "reward"}, [4, 5, 7, 8]),
        ({"keep": 1, "keep_best": "no/such"}, [8]),
    ],
)
def test_the_newest_the_best_and_every_nth_stay(tmp_path, changed, kept):
    rewards = dict(zip(range(1, 9), [0.2, 0.1, 0.3, 0.9, float("nan"), 0.5, 0.4, 0.2], strict=True))
    metrics = {step: {"reward": reward} for step, reward in rewards.items()}
    save(tmp_path, range(1, 4), metrics, **changed)
    save(tmp_path, range(4, 9), metrics, **changed)  # a start knows of the metrics of those before
    assert steps(tmp_path) == kept


def test_a_save_is_due_by_steps_and_by_minutes(tmp_path):
    with Checkpoints(tmp_path, settings()) as checkpoints:
        by_steps = settings(checkpoint_every=4, keep_every=6)
        assert [step for step in range(1, 13) if checkpoints.due(step, by_steps)] == [4, 6, 8, 12]
        assert checkpoints.due(1, settings(checkpoint_every=4, checkpoint_minutes=1e-9))
        assert not checkpoints.due(1, settings(checkpoint_every=4, checkpoint_minutes=0.0))


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("where", "name"), [(ocp.CheckpointManager, "save"), (files, "write_checksums")])
def test_a_save_that_fails_is_told_and_made_up_for(tmp_path, warnings, where, name):
    """The disk is full when the save begins, or only when its last file is written, while training goes on."""
    save(tmp_path, [2])
    with Checkpoints(tmp_path, settings(keep=1, checkpoint_every=2)) as checkpoints:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(where, name, no_room)
            checkpoints.save(state_at(4), HostState())
            checkpoints.wait()
            assert len(warnings) == 1
            assert "4: not saved" in warnings[0]
            assert "No space left on device" in warnings[0]
        assert 2 in steps(tmp_path)
        assert checkpoints.due(5, settings(checkpoint_every=2))
        checkpoints.save(state_at(5), HostState())
        checkpoints.wait()
        assert not checkpoints.due(7, settings(checkpoint_every=2))
        assert steps(tmp_path) == [5]
    assert_same(restore(tmp_path)[0], state_at(5))


def test_a_run_does_not_end_well_while_its_last_save_failed(tmp_path, monkeypatch, warnings):
    monkeypatch.setattr(files, "write_checksums", no_room)
    with pytest.raises(UserError, match="step 4 could not be saved; make room and start again"):
        save(tmp_path, [4])


def test_nothing_is_saved_where_the_metrics_could_not_be_written_first(tmp_path, warnings):
    with Checkpoints(tmp_path, settings()) as checkpoints:
        checkpoints.save(state_at(1), HostState(), first=no_room)
        assert steps(tmp_path) == []
        checkpoints.save(state_at(2), HostState())
    assert steps(tmp_path) == [2]


def test_a_checkpoint_does_not_depend_on_the_devices_it_was_saved_from(tmp_path, monkeypatch):
    """One device to eight and eight to one, and neither pickles nor what Orbax notes of the sharding are needed."""
    save(tmp_path / "one", [1])
    program = Path(__file__).with_name("checkpoint_program.py")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, program, tmp_path / "one", tmp_path / "eight"], env=environment, check=True)
    saved = tmp_path / "eight" / "checkpoints" / "2"
    notes = list(saved.glob("*/_sharding"))
    assert notes
    for path in notes:
        path.unlink()
    files.write_checksums(saved)

    def refused(*_, **__):
        raise AssertionError("a pickle")

    monkeypatch.setattr(pickle, "load", refused)
    monkeypatch.setattr(pickle, "loads", refused)
    state, host = restore(tmp_path / "eight")
    assert_same(state, state_at(2))
    assert host.curriculum.solutions["p"].rollout.tokens.tolist() == [3, 4, 5]


@pytest.mark.slow
def test_killed_in_the_middle_of_saves_it_ends_like_the_unbroken_run(tmp_path):
    """kill -9 while the files of a step are being written: each time the run goes on from the step before."""
    options = {"steps": 8, "checkpoint_every": 1, "batch_size": 8}
    command = [sys.executable, "experiments/sft.py", "--config=configs/tiny.py", "--config.training.keep=1"]
    command += [f"--config.sft.{key}={value}" for key, value in options.items()]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

    def start(name):
        return subprocess.Popen([*command, f"--workdir={tmp_path / name}"], cwd=ROOT, env=environment)

    assert start("unbroken").wait() == 0
    for step in (1, 3, 6):
        process = start("broken")
        while not list((tmp_path / "broken").glob(f"checkpoints/{step}.orbax-checkpoint-tmp*")):
            assert process.poll() is None
            time.sleep(0.0005)
        process.kill()
        process.wait()
        assert max(steps(tmp_path / "broken"), default=0) in (step - 1, step)
    assert start("broken").wait() == 0
    one, other = (read_metrics(tmp_path / name) for name in ("unbroken", "broken"))
    assert [row["step"] for row in other] == list(range(1, 9))
    assert [row["loss"] for row in one] == [row["loss"] for row in other]
    assert_same(hf.load(tmp_path / "unbroken")[1], hf.load(tmp_path / "broken")[1])
