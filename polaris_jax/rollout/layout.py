"""How the sampler's parameters lie in memory: each layer apart, so that decoding copies none out of a stack of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import unembed, unembedding, unstack

JOINED = {"attention": ("q", "k", "v"), "mlp": ("gate", "up")}  # linear layers that share an input


def lay_out(model: ModelConfig, params: Any, *, join: bool, transpose: bool) -> Any:
    """The model's parameters as the sampler's programs want them: a list of layers, which they may be already.

    join: with the kernels that share an input side by side in `joined`, one product each; not where they are sharded.
    transpose: with the unembedding also as `scorer_DV`.
    """
    extra = transposed(model, params) if transpose else {}
    layers = params["layers"] if isinstance(params["layers"], list) else unstack(params["layers"])
    if join:
        layers = [_join(layer, lambda *x: jnp.concatenate(x, axis=-1)) for layer in layers]
    return params | {"layers": layers} | extra


def transposed(model: ModelConfig, params: Any) -> dict[str, jax.Array]:
    """The unembedding with the vocabulary along its last axis, for products with few rows."""
    return {"scorer_DV": unembedding(params, model).T}


def laid_shardings(model: ModelConfig, shardings: Any, *, join: bool, transpose: bool) -> Any:
    """Where the results of `lay_out` lie, from where the parameters do."""

    def without(axis: slice, sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[axis]))

    extra = {"scorer_DV": without(slice(None, None, -1), unembedding(shardings, model))} if transpose else {}
    layer = jax.tree.map(lambda sharding: without(slice(1, None), sharding), shardings["layers"])
    if join:
        layer = _join(layer, lambda first, *_: first)
    return shardings | {"layers": [layer] * model.num_hidden_layers} | extra


def _join(layer: dict, join: Callable) -> dict:
    joined = {}
    for part, names in JOINED.items():
        side_by_side = jax.tree.map(join, *(layer[part][name] for name in names))
        rest = {name: value for name, value in layer[part].items() if name not in names}
        joined[part] = rest | {"joined": side_by_side}
    return layer | joined


def logits(model: ModelConfig, params: Any, hidden: jax.Array) -> jax.Array:
    """Float32 [..., V] of hidden states [..., D], from the parameters of `lay_out`."""
    if "scorer_DV" in params:
        return jnp.matmul(hidden, params["scorer_DV"], preferred_element_type=jnp.float32)
    return unembed(hidden, unembedding(params, model))
