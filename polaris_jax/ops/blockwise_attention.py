"""Exact attention over long packed rows, a block of queries and a block of keys at a time (arXiv 2205.14135)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 512  # queries, and keys, at once
HIDDEN = -1e30


def blockwise_attention(q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, start) -> jax.Array:
    """Causal attention within segments for scaled queries; returns [B, K, G, T, d] in q's dtype.

    q_BKGTd: [B, K, G, T, d], already scaled. k, v: [B, K, S, d]. q_tokens, k_tokens: (positions, segment ids), int32
    [B, T] and [B, S]. start: int32, slot of the first query among the keys. Key blocks before the first segment of a
    query block, and after its last query, are not visited. Scores exist for one pair of blocks at a time, in the
    backward pass too.
    """
    B, T = q_tokens[0].shape
    q_BKGTd, q_tokens = _pad(q_BKGTd, 3), tuple(_pad(x, 1) for x in q_tokens)
    k_BKSd, v_BKSd, k_tokens = _pad(k_BKSd, 2), _pad(v_BKSd, 2), tuple(_pad(x, 1) for x in k_tokens)
    blocks = q_BKGTd.shape[3] // BLOCK
    first_BT = start + jnp.arange(blocks * BLOCK) - q_tokens[0]  # slot where each query's segment begins
    low_N = first_BT.reshape(B, blocks, BLOCK).min(axis=(0, 2)) // BLOCK
    high_N = (start + jnp.arange(1, blocks + 1) * BLOCK - 1) // BLOCK + 1
    high_N = jnp.minimum(high_N, k_BKSd.shape[2] // BLOCK)
    return _attention(q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, (low_N, high_N))[:, :, :, :T]


def _pad(x, axis):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % BLOCK)
    return jnp.pad(x, widths)


def _block(x, i, axis):
    return jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis)


def _scores(q_BKGtd, q_tokens, k_BKSd, k_tokens, j):
    """Scores of a query block with key block j, float32 [B, K, G, t, s]."""
    (q_positions, q_segments), (k_positions, k_segments) = q_tokens, (_block(x, j, 1) for x in k_tokens)
    seen = q_segments[:, :, None] == k_segments[:, None, :]
    seen &= q_positions[:, :, None] >= k_positions[:, None, :]
    scores = jnp.einsum("BKGtd,BKsd->BKGts", q_BKGtd, _block(k_BKSd, j, 2), preferred_element_type=jnp.float32)
    return jnp.where(seen[:, None, None], scores, HIDDEN)


@jax.custom_vjp
def _attention(q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, bounds):
    return _forward(q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, bounds)[0]


def _forward(q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, bounds):
    B, K, G, T, d = q_BKGTd.shape

    def query_block(inputs):
        i, low, high = inputs
        q_BKGtd, tokens = _block(q_BKGTd, i, 3), tuple(_block(x, i, 1) for x in q_tokens)

        def key_block(j, carry):
            out, total, largest = carry
            scores = _scores(q_BKGtd, tokens, k_BKSd, k_tokens, j)
            new_largest = jnp.maximum(largest, scores.max(axis=-1))
            weights = jnp.exp(scores - new_largest[..., None])
            rescale = jnp.exp(largest - new_largest)
            v_BKsd = _block(v_BKSd, j, 2)
            product = jnp.einsum(
                "BKGts,BKsd->BKGtd", weights.astype(v_BKsd.dtype), v_BKsd, preferred_element_type=jnp.float32
            )
            return out * rescale[..., None] + product, total * rescale + weights.sum(axis=-1), new_largest

        shape = (B, K, G, BLOCK)
        empty = jnp.zeros((*shape, d), jnp.float32), jnp.zeros(shape, jnp.float32), jnp.full(shape, HIDDEN, jnp.float32)
        out, total, largest = jax.lax.fori_loop(low, high, key_block, empty)
        return (out / total[..., None]).astype(q_BKGTd.dtype), largest + jnp.log(total)

    out_NBKGtd, log_total_NBKGt = jax.lax.map(query_block, (jnp.arange(T // BLOCK), *bounds))
    out_BKGTd = jnp.moveaxis(out_NBKGtd, 0, 3).reshape(B, K, G, T, d)
    return out_BKGTd, (q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, bounds, out_BKGTd, log_total_NBKGt)


def _backward(saved, d_out_BKGTd):
    q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, bounds, out_BKGTd, log_total_NBKGt = saved
    delta_BKGT = jnp.sum(d_out_BKGTd.astype(jnp.float32) * out_BKGTd, axis=-1)
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    dtype = q_BKGTd.dtype

    def query_block(carry, inputs):
        i, low, high, log_total = inputs
        q_BKGtd, tokens = _block(q_BKGTd, i, 3), tuple(_block(x, i, 1) for x in q_tokens)
        d_out, delta = _block(d_out_BKGTd, i, 3), _block(delta_BKGT, i, 3)

        def key_block(j, carry):
            d_q, d_k, d_v = carry
            weights = jnp.exp(_scores(q_BKGtd, tokens, k_BKSd, k_tokens, j) - log_total[..., None])
            d_weights = einsum("BKGtd,BKsd->BKGts", d_out, _block(v_BKSd, j, 2))
            d_scores = (weights * (d_weights - delta[..., None])).astype(dtype)
            d_q = d_q + einsum("BKGts,BKsd->BKGtd", d_scores, _block(k_BKSd, j, 2))
            d_k = _add_block(d_k, einsum("BKGts,BKGtd->BKsd", d_scores, q_BKGtd), j)
            d_v = _add_block(d_v, einsum("BKGts,BKGtd->BKsd", weights.astype(dtype), d_out), j)
            return d_q, d_k, d_v

        d_q = jnp.zeros(q_BKGtd.shape, jnp.float32)
        d_q, *carry = jax.lax.fori_loop(low, high, key_block, (d_q, *carry))
        return carry, d_q.astype(dtype)

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (k_BKSd, v_BKSd)]
    indices = jnp.arange(log_total_NBKGt.shape[0])
    (d_k, d_v), d_q_NBKGtd = jax.lax.scan(query_block, zeros, (indices, *bounds, log_total_NBKGt))
    d_q = jnp.moveaxis(d_q_NBKGtd, 0, 3).reshape(q_BKGTd.shape)
    return d_q, d_k.astype(k_BKSd.dtype), d_v.astype(v_BKSd.dtype), None, None, None


def _add_block(x_BKSd, block_BKsd, j):
    return jax.lax.dynamic_update_slice_in_dim(x_BKSd, _block(x_BKSd, j, 2) + block_BKsd, j * BLOCK, 2)


_attention.defvjp(_forward, _backward)
