"""Moments in the host's memory between updates: the same bits as beside the parameters, and in checkpoints too.

XLA on CPUs has that memory by name, `pinned_host`, so that all of the way is taken but for the copy; that it frees a
device's memory is what tests/plan/test_ahead.py asks the compiler for GPUs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.optim.offload import HOST
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import platform, state
from polaris_jax.training.checkpoint import Checkpoints
from polaris_jax.training.host import HostState
from polaris_jax.training.state import init_state, state_bytes, state_shardings
from polaris_jax.training.update import make_apply

MODEL = ModelConfig(64, 32, 48, 1, 4, 2, 8, rope_theta=100.0, dtype="float32")
KINDS = [("adamw", "float32"), ("adamw", "bfloat16"), ("adamw", "int8"), ("muon", "float32"), ("lion", "float32")]


def settings(name="adamw", kind="float32", offload=True):
    config = get_config()
    config.optimizer.update(dict(name=name, moments=kind, offload=offload, learning_rate=1e-2))
    return config


def updated(config, mesh):
    """The state after two updates with made-up gradients."""
    apply, rng = make_apply(MODEL, config, mesh), np.random.default_rng(0)
    found = init_state(MODEL, config, mesh)
    totals = {name: jnp.float32(1) for name in ("tokens", "sequences", "loss")}, {}
    for _ in range(2):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), found.params)
        found, metrics = apply(found, grads, totals, jnp.float32(1), np.bool_(True))
        assert not metrics["skipped"]
    return found


def kinds_of_memory(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_an_update_has_the_same_bits_wherever_its_moments_lie(name, kind):
    mesh = make_mesh({}, jax.devices()[:1])
    found, expected = (updated(settings(name, kind, offload), mesh) for offload in (True, False))
    on_host = [x for x in jax.tree.leaves(found.opt_state.inner) if x.sharding.memory_kind == HOST]
    assert sum(x.size for x in on_host) >= MODEL.num_parameters * (2 if name == "adamw" else 1)
    assert HOST not in kinds_of_memory((expected, found.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_a_checkpoint_brings_moments_back_to_where_they_were(tmp_path):
    config, mesh = settings(kind="int8"), make_mesh({}, jax.devices()[:1])
    saved = updated(config, mesh)
    with Checkpoints(tmp_path, config.training) as checkpoints:
        checkpoints.save(saved, HostState())
        checkpoints.wait()
        found, _ = checkpoints.restore(init_state(MODEL, config, mesh))
        beside, _ = checkpoints.restore(init_state(MODEL, settings(kind="int8", offload=False), mesh))
    for restored in (found, beside):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(saved))
    assert kinds_of_memory(found.opt_state.inner) == {HOST} != kinds_of_memory(beside.opt_state.inner)


def test_what_lies_on_the_host_takes_no_memory_of_a_device_that_has_its_own(monkeypatch):
    mesh = make_mesh({}, jax.devices()[:1])
    beside, away = (
        state_bytes(init_state(MODEL, config, mesh), state_shardings(MODEL, config, mesh))
        for config in (settings(offload=False), settings())
    )
    assert beside == away > 12 * MODEL.num_parameters  # a CPU's memory is the host's
    monkeypatch.setattr(state, "has_own_memory", lambda mesh: True)
    away = state_bytes(init_state(MODEL, settings(), mesh), state_shardings(MODEL, settings(), mesh))
    assert away == beside - 8 * MODEL.num_parameters
    assert not platform.has_own_memory(mesh)


@pytest.mark.slow
def test_over_a_mesh_all_that_is_offloaded_keeps_its_bits():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, str(Path(__file__).with_name("offloaded_updates.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert row["equal"], row
        assert HOST in row["kinds"], row
