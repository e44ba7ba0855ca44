"""Keys and values of the tokens of one device call, kept beside the page pool until they are written to their pages.

They are a list of pieces: keys [B, K, d, N] and values [B, K, N, d] of each layer where layers are unrolled, since a
step then copies no other layer's; else a single piece of all, [L, ...], for the loop over layers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import unrolled
from polaris_jax.ops.paged_attention import Pages

NewTokens = list[tuple[jax.Array, jax.Array]]


def empty(model: ModelConfig, pages: Pages, B: int, N: int) -> NewTokens:
    """Room for N tokens of B sequences."""
    L, _, _, K, d = pages[0].shape
    count, axes = (L, ()) if unrolled(model) else (1, (L,))
    shapes = (*axes, B, K, d, N), (*axes, B, K, N, d)
    return [tuple(jnp.zeros(shape, x.dtype) for shape, x in zip(shapes, pages, strict=True)) for _ in range(count)]


def put(new: NewTokens, k_BTKd: jax.Array, v_BTKd: jax.Array, layer: Any, step: Any) -> tuple[NewTokens, Any]:
    """The tokens with a layer's keys and values from `step` on, and those of that layer, [B, K, d, N] and [B, K, N, d].

    layer: an int where layers are unrolled, else traced.
    """
    piece, at = (layer, ()) if isinstance(layer, int) else (0, (layer,))
    keys, values = new[piece]
    k, v = k_BTKd.transpose(0, 2, 3, 1).astype(keys.dtype), v_BTKd.transpose(0, 2, 1, 3).astype(values.dtype)
    k, v = (jnp.expand_dims(x, range(len(at))) for x in (k, v))
    keys = jax.lax.dynamic_update_slice(keys, k, (*at, 0, 0, 0, step))
    values = jax.lax.dynamic_update_slice(values, v, (*at, 0, 0, step, 0))
    return [*new[:piece], (keys, values), *new[piece + 1 :]], (keys[at], values[at])


def as_pages(new: NewTokens) -> Pages:
    """All layers' as pages lay them out, [L, B, N, K, d]."""
    keys, values = (
        jnp.concatenate([x.reshape(-1, *x.shape[-4:]) for x in pieces]) for pieces in zip(*new, strict=True)
    )
    return keys.transpose(0, 1, 4, 2, 3), values.transpose(0, 1, 3, 2, 4)
