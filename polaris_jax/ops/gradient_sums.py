"""Gradients that are added to sums where these lie, so that no update holds a second array of a parameter's size.

Each function passes parameters and running sums of gradients through unchanged. In the backward pass the cotangent of
the sums is what has been summed so far: it begins as the sums themselves (`begin`), and each use of a parameter adds
its own gradient in place (`use`, `use_layer`, `look_up`), where a plain gradient by parameters is an array of its own.
So with every use of params replaced,

    jax.grad(lambda sums: begin(loss(params, sums), sums_that_the_loss_gave_back))(sums)

is `sums` plus the gradient of the loss by params. A parameter that is used twice threads its sums through both.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def begin(loss: jax.Array, sums: Any) -> jax.Array:
    """The loss; in the backward pass the sums' cotangent is the sums. sums: as the last uses gave them back."""
    del sums
    return loss


begin.defvjp(lambda loss, sums: (loss, sums), lambda sums, d_loss: (d_loss, sums))


@jax.custom_vjp
def use(params: Any, sums: Any) -> tuple[Any, Any]:
    """Both as they are; the parameters' gradient is added to the sums, which are like them."""
    return params, sums


use.defvjp(
    lambda params, sums: ((params, sums), None),
    lambda _, d: (None, jax.tree.map(jnp.add, d[1], d[0])),
)


@jax.custom_vjp
def use_layer(layer_params: Any, sums: Any, layer: jax.Array) -> tuple[Any, Any]:
    """`use` of one layer's parameters, for the sums of all layers, to place `layer` of which the gradient is added."""
    del layer
    return layer_params, sums


def _add_layer(layer, d):
    d_params, d_sums = d
    old = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), d_sums)
    new = jax.tree.map(jnp.add, old, d_params)
    return None, jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, layer, 0), d_sums, new), None


use_layer.defvjp(lambda params, sums, layer: ((params, sums), layer), _add_layer)


@jax.custom_vjp
def look_up(table_VD: jax.Array, sums_VD: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`table[ids]`, whose gradient is added to those rows of the sums; and the sums as they are."""
    return table_VD[ids], sums_VD


look_up.defvjp(
    lambda table_VD, sums_VD, ids: ((table_VD[ids], sums_VD), ids),
    lambda ids, d: (None, d[1].at[ids].add(d[0]), None),
)
