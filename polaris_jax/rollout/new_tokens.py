"""Keys and values of the tokens of one decoding call, kept beside the page pool until they are written to their pages.

They are a list with the keys and values of each layer, so that a step copies no other layer's. `order` says how the
axes of [B, N, K, d], which is how pages have them, lie: those of the keys, and those of the values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.ops.paged_attention import Pages

NewTokens = list[tuple[jax.Array, jax.Array]]
Order = tuple[tuple[int, ...], tuple[int, ...]]
AS_PAGES = (0, 1, 2, 3), (0, 1, 2, 3)


def empty(pages: Pages, B: int, N: int, order: Order) -> NewTokens:
    """Room for N tokens of B sequences."""
    L, _, _, K, d = pages[0].shape
    shapes = [tuple((B, N, K, d)[axis] for axis in axes) for axes in order]
    return [tuple(jnp.zeros(shape, x.dtype) for shape, x in zip(shapes, pages, strict=True)) for _ in range(L)]


def put(new: NewTokens, fresh: Pages, layer: int, step: jax.Array, order: Order) -> NewTokens:
    """The tokens with a layer's keys and values of one step, [B, 1, K, d], at their place."""
    here = [
        jax.lax.dynamic_update_slice_in_dim(buffer, x.transpose(axes).astype(buffer.dtype), step, axes.index(1))
        for buffer, x, axes in zip(new[layer], fresh, order, strict=True)
    ]
    return [*new[:layer], tuple(here), *new[layer + 1 :]]


def as_pages(new: NewTokens, order: Order = AS_PAGES) -> Pages:
    """All layers', [L, B, N, K, d]."""
    stacked = (jnp.stack(layers) for layers in zip(*new, strict=True))
    return tuple(x.transpose(0, *(1 + np.argsort(axes))) for x, axes in zip(stacked, order, strict=True))
