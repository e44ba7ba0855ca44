"""Attention over whole sequences on NVIDIA GPUs: cuDNN's, which takes no segment ids, so a row is one sequence."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from polaris_jax.errors import UserError

DTYPES = ("bfloat16", "float16")  # cuDNN's; other dtypes take the portable version


def cudnn_attention(
    q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, segment_ids_BT: jax.Array, implementation: str = "cudnn"
) -> jax.Array:
    """Causal grouped-query attention in rows of one sequence each, then padding; [B, T, H, d] in q's dtype.

    segment_ids: int32 [B, T], 0 where there is padding. Differentiable. The output of padding is to be ignored.
    """
    lengths_B = jnp.sum(segment_ids_BT != 0, axis=1, dtype=jnp.int32)
    lengths_B = jnp.maximum(lengths_B, 1)  # a row of padding must see something
    return jax.nn.dot_product_attention(
        q_BTHd, k_BTKd, v_BTKd, is_causal=True, query_seq_lengths=lengths_B, key_value_seq_lengths=lengths_B,
        implementation=implementation,
    )  # fmt: skip


def cudnn_context_attention(
    q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, segment_ids_BT: jax.Array, implementation: str = "cudnn"
) -> jax.Array:
    """`cudnn_attention` inside shard_map, where each device has a part of the rows' tokens along mesh axis "context".

    Each computes some of the heads for whole rows (arXiv 2309.14509); kv heads are repeated where the parts do not
    divide them. Raises UserError where the parts do not divide the query heads.
    """
    parts, H, K = jax.lax.axis_size("context"), q_BTHd.shape[2], k_BTKd.shape[2]
    if H % parts:
        raise UserError(f"config.mesh.context: {parts} does not divide the {H} heads of a device")
    if K % parts:
        k_BTKd, v_BTKd = (jnp.repeat(x, H // K, axis=2) for x in (k_BTKd, v_BTKd))
    exchange = partial(jax.lax.all_to_all, axis_name="context", tiled=True)
    q, k, v = (exchange(x, split_axis=2, concat_axis=1) for x in (q_BTHd, k_BTKd, v_BTKd))
    segment_ids = jax.lax.all_gather(segment_ids_BT, "context", axis=1, tiled=True)
    return exchange(cudnn_attention(q, k, v, segment_ids, implementation), split_axis=1, concat_axis=2)


def cudnn_chunk_attention(
    q_BTHd: jax.Array,
    k_BSKd: jax.Array,
    v_BSKd: jax.Array,
    exist_BS: jax.Array,
    implementation: str = "cudnn",
) -> jax.Array:
    """Causal attention of the last T of S slots; exist: bool [B, S - T], which of the earlier keys there are."""
    mask = None
    T, earlier = q_BTHd.shape[1], exist_BS.shape[1]
    if earlier:
        seen_BTS = jnp.broadcast_to(exist_BS[:, None], (len(exist_BS), T, earlier))
        own_BTT = jnp.broadcast_to(jnp.tri(T, dtype=bool), (len(exist_BS), T, T))
        mask = jnp.concatenate([seen_BTS, own_BTT], axis=2)[:, None]
    return jax.nn.dot_product_attention(
        q_BTHd, k_BSKd, v_BSKd, mask=mask, is_causal=not earlier, implementation=implementation
    )
