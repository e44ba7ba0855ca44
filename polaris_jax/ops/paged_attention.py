"""Attention of new tokens over a paged cache and each other: the portable version that kernels are compared with.

Keys are laid out [B, K, d, S] and values [B, K, S, d] here: both products of decoding then run along the contiguous
axis, which on a CPU is several times faster than [B, S, K, d].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gather_pages(keys_PpKd: jax.Array, values_PpKd: jax.Array, table_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's cache in one piece: keys [B, K, d, W * p] and values [B, K, W * p, d].

    keys, values: [P, p, K, d], the pages of one layer. table: int32 [B, W], page numbers.
    """

    def rows(pages_PpKd):
        B, W = table_BW.shape
        return pages_PpKd[table_BW].reshape(B, W * pages_PpKd.shape[1], *pages_PpKd.shape[2:])

    return rows(keys_PpKd).transpose(0, 2, 3, 1), rows(values_PpKd).transpose(0, 2, 1, 3)


def cached_attention(
    q_BTHd: jax.Array,
    cached: tuple[jax.Array, jax.Array],
    lengths_B: jax.Array,
    new: tuple[jax.Array, jax.Array],
    visible_BTN: jax.Array,
) -> jax.Array:
    """Grouped-query attention over cached and new tokens, one softmax over both, in float32.

    q: [B, T, H, d]. cached: keys [B, K, d, S] and values [B, K, S, d], of which the first `lengths`, int32 [B], exist.
    new: keys [B, K, d, N] and values [B, K, N, d], which query t sees where `visible`, bool [B or 1, T, N], says so.
    Every query must see something. Returns [B, T, H, d] in q's dtype.
    """
    B, T, H, d = q_BTHd.shape
    K, S = cached[0].shape[1], cached[0].shape[3]
    q_BKMd = q_BTHd.reshape(B, T, K, H // K, d).transpose(0, 2, 1, 3, 4).reshape(B, K, T * (H // K), d)

    def scores(k_BKdS, visible_BTS):
        s_BKMS = jnp.einsum("BKMd,BKdS->BKMS", q_BKMd, k_BKdS.astype(q_BTHd.dtype), preferred_element_type=jnp.float32)
        visible_BMS = visible_BTS if visible_BTS.shape[1] == 1 else jnp.repeat(visible_BTS, H // K, axis=1)
        return jnp.where(visible_BMS[:, None], s_BKMS * d**-0.5, -1e30)

    s_cached = scores(cached[0], (jnp.arange(S) < lengths_B[:, None])[:, None])
    s_new = scores(new[0], visible_BTN)
    top_BKM = jnp.maximum(jnp.max(s_cached, axis=-1, initial=-1e30), jnp.max(s_new, axis=-1))
    w_cached, w_new = jnp.exp(s_cached - top_BKM[..., None]), jnp.exp(s_new - top_BKM[..., None])
    scale_BKM = 1 / (jnp.sum(w_cached, axis=-1) + jnp.sum(w_new, axis=-1))

    def mix(w_BKMS, v_BKSd):
        w_BKMS = (w_BKMS * scale_BKM[..., None]).astype(q_BTHd.dtype)
        return jnp.einsum("BKMS,BKSd->BKMd", w_BKMS, v_BKSd.astype(q_BTHd.dtype))

    out_BKMd = mix(w_cached, cached[1]) + mix(w_new, new[1])
    return out_BKMd.reshape(B, K, T, H // K, d).transpose(0, 2, 1, 3, 4).reshape(B, T, H, d)
