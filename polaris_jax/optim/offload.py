"""Optimizer state that lies in the host's memory between updates: `optimizer.offload`."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

HOST = "pinned_host"  # memory that a device reads and writes without the processor's help


def on_host(sharding: NamedSharding) -> NamedSharding:
    """The same layout over devices, each with its part in the memory of its host."""
    return sharding.with_memory_kind(HOST)


def moved_arrays(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """For each array of the optimizer's state whether it goes to the host: what is kept for a parameter does.

    params: arrays or their shapes.
    """
    state = jax.eval_shape(optimizer.init, params)
    return optax.tree.map_params(optimizer, lambda _: True, state, transform_non_params=lambda _: False)


def fetched(state: Any, moved: Any) -> Any:
    """The state with all of it on the device, within a jitted function. moved: of `moved_arrays`; None: nothing is.

    An array is there only for its own update, whose kernels read it where it lies.
    """
    return _put(state, moved, jax.memory.Space.Device)


def returned(state: Any, moved: Any) -> Any:
    """The state as it lies between updates, within a jitted function; the other way than `fetched`."""
    return _put(state, moved, jax.memory.Space.Host)


def _put(state: Any, moved: Any, space: jax.memory.Space) -> Any:
    if moved is None:
        return state
    return jax.tree.map(lambda x, move: jax.device_put(x, space) if move else x, state, moved)
