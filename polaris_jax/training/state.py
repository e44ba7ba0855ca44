"""The state of training: one pytree of arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.models.presets import ModelConfig
from polaris_jax.optim.optimizer import OptState, init_opt_state, opt_state_shardings
from polaris_jax.sharding.rules import param_shardings, replicated, sharded_params


class TrainState(NamedTuple):
    """step: int32, batches trained on. params: float32 master weights. opt_state: see `optimizer.py`."""

    step: jax.Array
    params: Any
    opt_state: OptState


def state_shardings(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> TrainState:
    """A `NamedSharding` for every array of the state: moments lie where their parameters lie."""
    params = param_shardings(model, mesh)
    return TrainState(replicated(mesh), params, opt_state_shardings(params, config.optimizer, mesh))


def init_state(model: ModelConfig, config: ConfigDict, mesh: Mesh, params: Any = None) -> TrainState:
    """Step 0, sharded by the rules table.

    params: float32 pytree, taken over without a copy where it already lies right; None: random from `config.seed`.
    """
    if params is None:
        params = sharded_params(model, mesh, config.seed)
    shardings = state_shardings(model, config, mesh)
    params = jax.device_put(params, shardings.params)
    start = jax.jit(
        lambda params: init_opt_state(params, config.optimizer, model.dtype), out_shardings=shardings.opt_state
    )
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    return TrainState(step, params, start(params))
