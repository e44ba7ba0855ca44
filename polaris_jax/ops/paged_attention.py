"""Attention of new tokens over a paged cache and each other: the portable version that kernels are compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gather_pages(pages_PpKd: jax.Array, table_BW: jax.Array) -> jax.Array:
    """The cache of each row in one piece, [B, W * p, K, d]. pages: [P, p, K, d]; table: int32 [B, W], page numbers."""
    B, W = table_BW.shape
    return pages_PpKd[table_BW].reshape(B, W * pages_PpKd.shape[1], *pages_PpKd.shape[2:])


def cached_attention(
    q_BTHd: jax.Array,
    cached_kv: tuple[jax.Array, jax.Array],
    lengths_B: jax.Array,
    new_kv: tuple[jax.Array, jax.Array],
    visible_BTN: jax.Array,
) -> jax.Array:
    """Grouped-query attention over the cached and the new keys, softmax in float32 over both.

    q: [B, T, H, d]. cached_kv: keys and values [B, S, K, d], of which the first `lengths`, int32 [B], exist.
    new_kv: keys and values [B, N, K, d], visible to query t where bool [B, T, N] (broadcastable) says so.
    Returns [B, T, H, d] in q's dtype. A query that sees nothing gets an average of everything.
    """
    B, T, H, d = q_BTHd.shape
    (cached_k, cached_v), (new_k, new_v) = cached_kv, new_kv
    S, K = cached_k.shape[1:3]
    q_BTKGd = q_BTHd.reshape(B, T, K, H // K, d)

    def scores(k_BSKd, visible_BTS):
        scores_BKGTS = jnp.einsum(
            "BTKGd,BSKd->BKGTS", q_BTKGd, k_BSKd.astype(q_BTHd.dtype), preferred_element_type=jnp.float32
        )
        return jnp.where(visible_BTS[:, None, None], scores_BKGTS * d**-0.5, -1e30)

    exists_BTS = (jnp.arange(S) < lengths_B[:, None])[:, None]
    scores_BKGTS = jnp.concatenate([scores(cached_k, exists_BTS), scores(new_k, visible_BTN)], axis=-1)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTHd.dtype)
    out_BTKGd = jnp.einsum("BKGTS,BSKd->BTKGd", weights_BKGTS[..., :S], cached_v.astype(q_BTHd.dtype))
    out_BTKGd += jnp.einsum("BKGTS,BSKd->BTKGd", weights_BKGTS[..., S:], new_v.astype(q_BTHd.dtype))
    return out_BTKGd.reshape(B, T, H, d)
