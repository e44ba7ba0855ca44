"""Keys and values of the tokens of one device call, kept beside the page pool until they are written to their pages.

They are a list of pieces, keys [l, B, K, d, N] and values [l, B, K, N, d] each: one piece for each layer (l = 1) where
layers are unrolled, since a step then copies no other layer's, else a single one of all, for the loop over layers.
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
    count = L if unrolled(model) else 1
    shapes = (L // count, B, K, d, N), (L // count, B, K, N, d)
    return [tuple(jnp.zeros(shape, x.dtype) for shape, x in zip(shapes, pages, strict=True)) for _ in range(count)]


def put(new: NewTokens, k_BTKd: jax.Array, v_BTKd: jax.Array, layer: Any, step: Any) -> tuple[NewTokens, Any]:
    """The tokens with a layer's keys and values from `step` on, and those of that layer, [B, K, d, N] and [B, K, N, d].

    layer: an int where layers are unrolled, else traced.
    """
    piece, place = (layer, 0) if isinstance(layer, int) else (0, layer)
    keys, values = new[piece]
    k, v = k_BTKd.transpose(0, 2, 3, 1).astype(keys.dtype), v_BTKd.transpose(0, 2, 1, 3).astype(values.dtype)
    keys = jax.lax.dynamic_update_slice(keys, k[None], (place, 0, 0, 0, step))
    values = jax.lax.dynamic_update_slice(values, v[None], (place, 0, 0, step, 0))
    return [*new[:piece], (keys, values), *new[piece + 1 :]], (keys[place], values[place])


def as_pages(new: NewTokens) -> Pages:
    """All layers' as pages lay them out, [L, B, N, K, d]."""
    keys, values = (jnp.concatenate(pieces) for pieces in zip(*new, strict=True))
    return keys.transpose(0, 1, 4, 2, 3), values.transpose(0, 1, 3, 2, 4)
