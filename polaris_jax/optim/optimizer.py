"""AdamW on float32 master weights with schedules, a global-norm clip, and updates that are skipped when not finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.optim import moments
from polaris_jax.sharding.rules import replicated

EPS = 1e-8  # AdamW's, after the square root
FIRST_LOSS_SCALE = 2.0**12  # float16 only
GROW_AFTER = 100  # finite updates until the loss scale doubles


class OptState(NamedTuple):
    """count: int32, updates applied. mu, nu: first and second moments, pytrees like the parameters, each array kept
    as `config.optimizer.moments` says (see `moments.py`).

    skipped, skipped_in_a_row: int32, updates left out because the loss or a gradient was not finite.
    loss_scale: float32, what the loss is multiplied with before the backward pass; 1 unless computing in float16.
    finite_in_a_row: int32, updates since the scale last changed.
    """

    count: jax.Array
    mu: Any
    nu: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    loss_scale: jax.Array
    finite_in_a_row: jax.Array


def constant(count, optimizer: ConfigDict, total: int):
    """The configured learning rate."""
    return jnp.full((), optimizer.learning_rate, jnp.float32)


def cosine(count, optimizer: ConfigDict, total: int):
    """Half a cosine from the configured learning rate, after the warm-up, to a tenth of it at `total` updates."""
    progress = (count - optimizer.warmup_steps) / max(total - optimizer.warmup_steps, 1)
    return optimizer.learning_rate * (0.55 + 0.45 * jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))


SCHEDULES: dict[str, Callable] = {"constant": constant, "cosine": cosine}


def learning_rate(count: jax.Array, optimizer: ConfigDict, total: int) -> jax.Array:
    """Of the update after `count` updates, float32; rises linearly over the first `warmup_steps`. total: of the run."""
    rate = SCHEDULES[optimizer.schedule](count, optimizer, total)
    return rate * jnp.minimum(1.0, (count + 1) / (optimizer.warmup_steps + 1))


def init_opt_state(params: Any, optimizer: ConfigDict, dtype: str) -> OptState:
    """Zero moments. dtype: the model's compute dtype; the loss is scaled where it is float16."""
    zero = jnp.zeros((), jnp.int32)
    mu, nu = (
        jax.tree.map(partial(moments.zeros, kind=optimizer.moments, signed=signed), params) for signed in (True, False)
    )
    scale = jnp.float32(FIRST_LOSS_SCALE if dtype == "float16" else 1.0)
    return OptState(zero, mu, nu, zero, zero, scale, zero)


def opt_state_shardings(params: Any, optimizer: ConfigDict, mesh: Mesh) -> OptState:
    """Shardings of the optimizer's arrays. params: the parameters' shardings."""
    scalar = replicated(mesh)
    kept = jax.tree.map(partial(moments.sharding, kind=optimizer.moments), params)
    return OptState(scalar, kept, kept, scalar, scalar, scalar, scalar)


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm of all arrays of a tree together, float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def adamw(
    params: Any, grads: Any, state: OptState, optimizer: ConfigDict, total: int
) -> tuple[Any, OptState, dict[str, jax.Array]]:
    """One AdamW update (arXiv 1711.05101) of all parameters, as torch does it, or none when a gradient is not finite.

    grads: float32, like params, not scaled. total: updates in the run, for the schedule. Gradients longer than
    `clip_norm` together are shortened to it (0: never). Returns the new parameters and state, and grad_norm (before
    the clip), update_norm, learning_rate and skipped.
    """
    norm = global_norm(grads)
    finite = jnp.isfinite(norm)
    factor = jnp.minimum(1.0, optimizer.clip_norm / (norm + 1e-6)) if optimizer.clip_norm else 1.0
    rate = learning_rate(state.count, optimizer, total)
    b1, b2 = optimizer.betas
    count = state.count + 1
    bias1, bias2 = 1 - b1 ** count.astype(jnp.float32), 1 - b2 ** count.astype(jnp.float32)
    key = jax.random.key(count)

    def leaf(index, p, g, kept_m, kept_v):
        g = g * factor
        m = b1 * moments.decode(kept_m, signed=True) + (1 - b1) * g
        v = b2 * moments.decode(kept_v, signed=False) + (1 - b2) * g * g
        step = -rate * (m / bias1 / (jnp.sqrt(v / bias2) + EPS) + optimizer.weight_decay * p)
        step = jnp.where(finite, step, 0)
        key_m, key_v = jax.random.split(jax.random.fold_in(key, index))
        new = (
            moments.encode(m, optimizer.moments, key_m, signed=True),
            moments.encode(v, optimizer.moments, key_v, signed=False),
        )
        new_m, new_v = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (kept_m, kept_v))
        return p + step, new_m, new_v, jnp.sum(step * step)

    structure = jax.tree.structure(params)
    columns = (structure.flatten_up_to(tree) for tree in (params, grads, state.mu, state.nu))
    updated = [leaf(index, *arrays) for index, arrays in enumerate(zip(*columns, strict=True))]
    params, mu, nu, squares = map(structure.unflatten, zip(*updated, strict=True))
    finite_in_a_row = jnp.where(finite, state.finite_in_a_row + 1, 0)
    scale, finite_in_a_row = _next_scale(state.loss_scale, finite, finite_in_a_row)
    skipped = 1 - finite.astype(jnp.int32)
    state = OptState(
        jnp.where(finite, count, state.count),
        mu,
        nu,
        state.skipped + skipped,
        jnp.where(finite, 0, state.skipped_in_a_row + 1),
        scale,
        finite_in_a_row,
    )
    update_norm = jnp.sqrt(sum(jax.tree.leaves(squares)))
    metrics = {"grad_norm": norm, "update_norm": update_norm, "learning_rate": rate, "skipped": skipped}
    return params, state, metrics


def _next_scale(scale, finite, finite_in_a_row):
    """Dynamic loss scale (arXiv 1710.03740): halved by an overflow, doubled after a while without; 1 stays 1."""
    grow = finite & (finite_in_a_row >= GROW_AFTER)
    changed = jnp.where(finite, jnp.where(grow, scale * 2, scale), scale / 2)
    return jnp.where(scale == 1, scale, jnp.maximum(changed, 2.0)), jnp.where(grow, 0, finite_in_a_row)
