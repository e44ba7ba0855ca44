"""What a CPU does otherwise, each entry of `platforms.PLATFORMS["cpu"]`: it spends memory, of which it has plenty, on
speed, and a slot of padding costs it as much as any other."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from polaris_jax.models.layers import Linear, project
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import unembedding, unrolled, unstack
from polaris_jax.ops.paged_attention import Cache, Pages, cached_attention, gather_pages

JOINED = {"attention": ("q", "k", "v"), "mlp": ("gate", "up")}  # linear layers that share an input


def lay_out(model: ModelConfig, params: Any) -> Any:
    """The sampler's parameters as a CPU reads them fastest: the unembedding also as `scorer_DV`; where layers are
    unrolled and on one device, each layer apart, with the kernels of one input side by side in `joined`."""
    laid = params | {"scorer_DV": unembedding(params, model).T}
    if not unrolled(model) or jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        return laid
    laid["layers"] = unstack(params["layers"])
    for layer in laid["layers"]:
        for part, names in JOINED.items():
            apart = [layer[part].pop(name) for name in names]
            layer[part]["joined"] = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *apart)
    return laid


def project_joined(x: jax.Array, *layers: Linear) -> list[jax.Array]:
    """What each of the layers makes of x, in one product where `lay_out` has joined them."""
    first, *others = layers
    if not first.parent.has_variable("params", "joined"):
        return project(x, *layers)
    ends = [first.features]
    for layer in others:
        ends.append(ends[-1] + layer.features)
    joined = Linear(ends.pop(), first.axes, first.dtype, first.use_bias, name="joined")
    return jnp.split(joined(x), ends, axis=-1)


def logits(model: ModelConfig, params: Any, hidden: jax.Array) -> jax.Array:
    """Float32 [..., V] of hidden states [..., D]."""
    return jnp.matmul(hidden, params["scorer_DV"], preferred_element_type=jnp.float32)


def gather_first(_: str, cache: Cache) -> Any:
    """`platforms.read_pages`, where each sequence's pages are copied into one piece before the first step."""
    keys, values = cache.pages
    pieces = [gather_pages(keys[layer], values[layer], cache.table) for layer in range(len(keys))]

    def attend(q, layer, new, visible):
        if isinstance(layer, int):
            return cached_attention(q, pieces[layer], cache.lengths, new, visible)
        # a switch rather than an index, which would copy the layer's piece
        branches = [partial(cached_attention, cached=piece, lengths_B=cache.lengths) for piece in pieces]
        return jax.lax.switch(layer, [lambda q, new, f=f: f(q, new=new, visible_BTN=visible) for f in branches], q, new)

    return attend


def slot_buckets(slots: int) -> list[int]:
    """How many slots a decoding call may have: all, three quarters, a half, and so on, down to at most 4."""
    sizes, size = {slots}, slots
    while size > 4:
        sizes.add(-(-size * 3 // 4))
        size = -(-size // 2)
        sizes.add(size)
    return sorted(sizes)


def memory(_: jax.Device) -> float:
    """Bytes of the host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reuse_pools(pools: list[Pages], pages: int) -> list[Pages]:
    """The kept pools, emptied, which takes less than new ones; none where they are of another size, or lost."""
    if any(x.shape[1] != pages or x.is_deleted() for pool in pools for x in pool):
        return []
    return [_empty(pool) for pool in pools]


@partial(jax.jit, donate_argnums=0, keep_unused=True)
def _empty(pages: Pages) -> Pages:
    return jax.tree.map(jnp.zeros_like, pages)
