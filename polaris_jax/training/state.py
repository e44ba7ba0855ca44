"""The state of training: one pytree of arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.models.lora import split
from polaris_jax.models.presets import ModelConfig
from polaris_jax.optim.optimizer import OptState, init_opt_state, make_optimizer, opt_state_shardings
from polaris_jax.sharding.rules import param_shapes, param_shardings, replicated, sharded_params


class TrainState(NamedTuple):
    """step: int32, batches trained on. params: float32 master weights; with LoRA adapters in float32 and the base that
    they adapt as `models.lora.freeze` keeps it. opt_state: of what is trained, see `optim/optimizer.py`."""

    step: jax.Array
    params: Any
    opt_state: OptState


def planned_updates(config: ConfigDict) -> int:
    """Updates of the optimizer in a stage, where every batch gives some."""
    return config.training.steps * config.updates.minibatches * config.updates.epochs


def stage_optimizer(config: ConfigDict, total_updates: int | None = None) -> optax.GradientTransformation:
    """The optimizer of a stage. total_updates: after which its schedule ends; None: those of the stage."""
    return make_optimizer(config.optimizer, total_updates or planned_updates(config))


def state_shardings(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> TrainState:
    """A `NamedSharding` for every array of the state: moments lie where their parameters lie."""
    params, (shapes, _) = param_shardings(model, mesh), split(param_shapes(model))
    opt_state = opt_state_shardings(stage_optimizer(config), shapes, split(params)[0], mesh)
    return TrainState(replicated(mesh), params, opt_state)


def init_state(model: ModelConfig, config: ConfigDict, mesh: Mesh, params: Any = None) -> TrainState:
    """Step 0, sharded by the rules table.

    params: as `param_shapes` says, taken over without a copy where they already lie right; None: random from
    `config.seed`.
    """
    if params is None:
        params = sharded_params(model, mesh, config.seed)
    shardings = state_shardings(model, config, mesh)
    params = jax.device_put(params, shardings.params)
    optimizer = stage_optimizer(config)
    start = jax.jit(lambda params: init_opt_state(optimizer, params, model.dtype), out_shardings=shardings.opt_state)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    return TrainState(step, params, start(split(params)[0]))


def state_bytes(state: TrainState, shardings: TrainState) -> int:
    """Bytes of a state on each device, laid out so. shardings: of `state_shardings`."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, state, shardings)
    return sum(jax.tree.leaves(sizes))
