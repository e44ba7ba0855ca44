"""The state of training: one pytree of arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from polaris_jax.models.lora import split
from polaris_jax.models.presets import ModelConfig
from polaris_jax.optim import offload
from polaris_jax.optim.optimizer import OptState, init_opt_state, make_optimizer, opt_state_shardings
from polaris_jax.sharding.rules import param_shapes, param_shardings, replicated, sharded_params
from polaris_jax.training.platform import has_own_memory


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
    """A `NamedSharding` for every array of the state: moments lie beside their parameters, or on the host."""
    params, (shapes, _) = param_shardings(model, mesh), split(param_shapes(model))
    on_host = config.optimizer.offload
    opt_state = opt_state_shardings(stage_optimizer(config), shapes, split(params)[0], mesh, on_host=on_host)
    return TrainState(replicated(mesh), params, opt_state)


def moved_moments(model: ModelConfig, config: ConfigDict, optimizer: optax.GradientTransformation) -> Any:
    """Which arrays of the optimizer's state lie on the host, of `offload.moved_arrays`; None: the config moves none."""
    return offload.moved_arrays(optimizer, split(param_shapes(model))[0]) if config.optimizer.offload else None


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
    moved = moved_moments(model, config, optimizer)

    def start(params: Any) -> OptState:
        opt_state = init_opt_state(optimizer, params, model.dtype)
        return opt_state._replace(inner=offload.returned(opt_state.inner, moved))

    start = jax.jit(start, out_shardings=shardings.opt_state)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    return TrainState(step, params, start(split(params)[0]))


def state_bytes(state: TrainState, shardings: TrainState) -> int:
    """Bytes of a state in each device's memory, laid out so. shardings: of `state_shardings`."""

    def size(x: jax.Array, sharding: NamedSharding) -> int:
        elsewhere = sharding.memory_kind == offload.HOST and has_own_memory(sharding.mesh)
        return 0 if elsewhere else math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, state, shardings)))
