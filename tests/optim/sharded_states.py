"""Run by test_shardings.py on 8 simulated devices, prints JSON.

sharded_states.py places     where each array of each optimizer's state lies
sharded_states.py updates    how far the parameters are from those of one device after two updates
"""

import json
import sys

import jax
import numpy as np
from flax import linen as nn

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import init_params
from polaris_jax.optim.optimizer import OPTIMIZERS, apply_gradients
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import param_shapes
from polaris_jax.training.state import init_state, stage_optimizer, state_shardings

MODEL = ModelConfig(64, 32, 64, 1, 8, 4, 8, rope_theta=100.0, dtype="float32")
KINDS = (("adamw", "bfloat16"), ("adamw", "int8"), *((name, "float32") for name in OPTIMIZERS))


def settings(name, kind):
    config = get_config()
    config.optimizer.name, config.optimizer.moments, config.optimizer.learning_rate = name, kind, 1e-2
    return config


def updated(config, mesh):
    """The parameters after two updates with made-up gradients."""
    shardings, optimizer = state_shardings(MODEL, config, mesh), stage_optimizer(config)

    def step(state, grads):
        params, opt_state, _ = apply_gradients(optimizer, state.params, grads, state.opt_state, True)
        return state._replace(params=params, opt_state=opt_state)

    step, rng = jax.jit(step, out_shardings=shardings), np.random.default_rng(0)
    params = jax.device_get(nn.unbox(init_params(MODEL, jax.random.key(0))))
    state = init_state(MODEL, config, mesh, params)
    for _ in range(2):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
        state = step(state, jax.device_put(grads, shardings.params))
    return jax.device_get(state.params)


def places(shapes, shardings):
    """Path, shape, mesh axes and shape of a device's part of each array."""
    found = []
    for (path, x), where in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True):
        axes = [*where.spec] + [None] * (x.ndim - len(where.spec))
        found.append((jax.tree_util.keystr(path), x.shape, axes, where.shard_shape(x.shape)))
    return found


def main(what):
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, jax.devices())
    if what == "places":
        for name, kind in KINDS:
            config, params = settings(name, kind), nn.unbox(param_shapes(MODEL))
            inner = jax.eval_shape(stage_optimizer(config).init, params)
            shardings = state_shardings(MODEL, config, mesh)
            row = {"params": places(params, shardings.params), "inner": places(inner, shardings.opt_state.inner)}
            print(json.dumps({"name": name, "kind": kind, **row}))
    else:
        for name, kind in (("adamw", "int8"), ("muon", "float32")):
            config = settings(name, kind)
            together, alone = updated(config, mesh), updated(config, make_mesh({}, jax.devices()[:1]))
            apart = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), together, alone)
            print(json.dumps({"name": name, "kind": kind, "apart": max(jax.tree.leaves(apart))}))


if __name__ == "__main__":
    main(sys.argv[1])
