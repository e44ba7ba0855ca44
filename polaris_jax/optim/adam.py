"""Adam's scaling, with moments that may be kept in fewer bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from polaris_jax.optim import moments

EPS = 1e-8  # after the square root


def scale_by_adam(betas: tuple[float, float], kind: str = "float32") -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` (arXiv 1412.6980) with both moments kept as one of `moments.MOMENTS`.

    Gradients are float32. The state's mu and nu are trees like the parameters, each array as `moments.encode` gives it.
    Its update takes a `piece`, int, where it is called for several parts of the parameters: the rounding depends on it.
    """
    b1, b2 = betas

    def init(params: Any) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(partial(moments.zeros, kind=kind, signed=signed), params) for signed in (True, False))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None, *, piece: Any = 0, **_: Any):
        count = state.count + 1
        bias1, bias2 = 1 - b1 ** count.astype(jnp.float32), 1 - b2 ** count.astype(jnp.float32)

        def leaf(key, g, kept_m, kept_v):
            m = b1 * moments.decode(kept_m, signed=True) + (1 - b1) * g
            v = b2 * moments.decode(kept_v, signed=False) + (1 - b2) * g * g
            key_m, key_v = jax.random.split(key)
            kept_m = moments.encode(m, kind, key_m, signed=True)
            kept_v = moments.encode(v, kind, key_v, signed=False)
            return m / bias1 / (jnp.sqrt(v / bias2) + EPS), kept_m, kept_v

        leaves, structure = jax.tree.flatten(grads)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(count), piece), len(leaves))
        columns = leaves, structure.flatten_up_to(state.mu), structure.flatten_up_to(state.nu)
        scaled = [leaf(*arrays) for arrays in zip(keys, *columns, strict=True)]
        updates, mu, nu = (structure.unflatten(arrays[i] for arrays in scaled) for i in range(3))
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)
