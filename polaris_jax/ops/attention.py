"""Attention over whole (packed) sequences: the portable version that kernels are compared with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def packed_attention(
    q_BTHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    cache: Any = None,
    layer: Any = None,
) -> tuple[jax.Array, Any]:
    """Causal grouped-query attention within segments, softmax in float32.

    q [B, T, H, d]; k, v [B, T, K, d] with H a multiple of K; positions and segment ids int32 [B, T]. A token sees the
    tokens of its own segment at positions up to its own; segment 0 is padding and its output is to be ignored.
    Returns [B, T, H, d] in q's dtype, and the cache untouched.
    """
    del layer
    B, T, H, d = q_BTHd.shape
    K = k_BTKd.shape[2]
    q_BTKGd = q_BTHd.reshape(B, T, K, H // K, d)
    scores_BKGTS = jnp.einsum("BTKGd,BSKd->BKGTS", q_BTKGd, k_BTKd, preferred_element_type=jnp.float32) * d**-0.5
    same = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    causal = positions_BT[:, :, None] >= positions_BT[:, None, :]
    scores_BKGTS = jnp.where((same & causal)[:, None, None], scores_BKGTS, -1e30)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTHd.dtype)
    out_BTKGd = jnp.einsum("BKGTS,BSKd->BTKGd", weights_BKGTS, v_BTKd)
    return out_BTKGd.reshape(B, T, H, d), cache
